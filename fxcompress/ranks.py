"""Whether the ranks of a distributed job run the same plans.

A plan follows from the graph, the options, our sources and PyTorch's version, and from nothing measured, so ranks agree
without talking. What may differ are those: an environment variable on one host, another version, a batch of another
shape. `compare_ranks()` finds that out with one collective, where the job says so: none is hidden in a compilation.
"""

import hashlib
from collections.abc import Sequence

import torch

from fxcompress import plan_io
from fxcompress.errors import PlanError
from fxcompress.ledger import make_plan, reports
from fxcompress.options import Options
from fxcompress.plan import GraphPlan

Seen = list[tuple[str, str]]
"""Fingerprint of each graph that was compiled, and a hash of what was decided for it."""


def compare_ranks(group: "torch.distributed.ProcessGroup | None" = None) -> int:
    """Compare the plans made so far on every rank; call it on all of them, for instance after the first step.

    Args:
        group: the ranks to compare; all if None.

    Returns:
        How many graphs they agree on.

    Raises:
        PlanError: two ranks differ; names the first graph that does, and what differs.
    """
    own = seen(reports())
    everyone: list[Seen | None] = [None] * torch.distributed.get_world_size(group)
    torch.distributed.all_gather_object(everyone, own, group=group)
    first = everyone[0] or []
    for rank, other in enumerate(everyone):
        if (found := difference(first, other or [])) is not None:
            raise PlanError(
                f"rank {rank} and rank 0 run different plans: {found}. Give all ranks one plan file (option 'plan'), "
                "or the same options, versions and shapes"
            )
    return len(own)


def seen(plans: Sequence[GraphPlan]) -> Seen:
    """What is compared of plans."""
    return [(plan.fingerprint, _digest(plan)) for plan in plans]


def difference(one: Seen, other: Seen) -> str | None:
    """What differs first; None if nothing does."""
    for number, (mine, theirs) in enumerate(zip(one, other, strict=False), 1):
        if mine[0] != theirs[0]:
            return f"graph {number} has the fingerprint {theirs[0]} there and {mine[0]} here"
        if mine[1] != theirs[1]:
            return f"graph {number}, fingerprint {mine[0]}, is planned differently"
    return None if len(one) == len(other) else f"{len(other)} graphs there and {len(one)} here"


def _digest(plan: GraphPlan) -> str:
    text = plan_io.dumps(make_plan([plan], Options()))
    return hashlib.sha256(text.encode()).hexdigest()
