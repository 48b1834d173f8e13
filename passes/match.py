"""Fit a stored plan to the graph at hand, exactly or not at all."""

from collections.abc import Sequence

import torch

from fxcompress.errors import PlanError
from fxcompress.facts import SavedTensor
from fxcompress.plan import Decision, GraphPlan, Plan

_IDENTITY = ("name", "storage", "op", "shape", "stride", "dtype", "need", "values")


def find_graph_plan(file: Plan, fingerprint: str, inner: str, where: str) -> GraphPlan:
    """The stored plan with this fingerprint, for the compiler `inner`.

    Raises:
        PlanError: the file plans other graphs; names their fingerprints, and what else was different.
    """
    for plan in file.graphs:
        if plan.fingerprint == fingerprint:
            return plan
    known = ", ".join(plan.fingerprint for plan in file.graphs) or "none"
    raise PlanError(
        f"{where}: no plan for this graph (fingerprint {fingerprint}; the file holds: {known}). "
        f"{_difference(file, inner)}; make a new plan."
    )


def _difference(file: Plan, inner: str) -> str:
    """Why the graphs may be others: what surely makes them so, where that is known."""
    made_for = dict(file.options).get("inner", inner)
    if made_for != inner:
        return f"The plan was made with inner={made_for!r}, here it is {inner!r}"
    if file.torch_version != str(torch.__version__):
        return f"The plan was made with PyTorch {file.torch_version}, here it is {torch.__version__}"
    return "The model or its input shapes differ from those the plan was made for"


def match(plan: GraphPlan, saved: Sequence[SavedTensor], where: str) -> dict[str, Decision]:
    """Stored decisions by tensor name.

    Raises:
        PlanError: the graph saves other tensors than the plan decides on; names the first difference.
    """
    decided = plan.decisions
    for position, (tensor, decision) in enumerate(zip(saved, decided, strict=False)):
        for field in _IDENTITY:
            found, stored = getattr(tensor, field), getattr(decision.tensor, field)
            if found != stored:
                raise PlanError(
                    f"{where}: decision {position} ({decision.tensor.name!r}): {field} is {stored!r} in the plan and "
                    f"{found!r} in the graph"
                )
    if len(saved) != len(decided):
        raise PlanError(f"{where}: the plan decides on {len(decided)} tensors, the graph saves {len(saved)}")
    return {decision.tensor.name: decision for decision in decided}
