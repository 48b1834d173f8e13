"""Fit a stored plan to the graph at hand, exactly or not at all."""

from collections.abc import Sequence

from fxcompress.errors import PlanError
from fxcompress.facts import SavedTensor
from fxcompress.plan import Decision, GraphPlan

_IDENTITY = ("name", "storage", "op", "shape", "stride", "dtype", "need", "values")


def find_graph_plan(graphs: Sequence[GraphPlan], fingerprint: str, where: str) -> GraphPlan:
    """The stored plan with this fingerprint.

    Raises:
        PlanError: the file plans other graphs; names their fingerprints.
    """
    for plan in graphs:
        if plan.fingerprint == fingerprint:
            return plan
    known = ", ".join(plan.fingerprint for plan in graphs) or "none"
    raise PlanError(
        f"{where}: no plan for this graph (fingerprint {fingerprint}; the file holds: {known}). "
        "The model, its input shapes, or the PyTorch version differ from those the plan was made for; make a new plan."
    )


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
