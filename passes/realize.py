"""When Inductor stores a pointwise result that it could also compute wherever it is read.

Computing a value at each reader saves its memory, and costs every reader the work and the reads of the whole
expression. Inductor's lowering draws the line by counts, which `stores(…)` repeats: without it, a residual stream would
look as if each sum of it were computed from all its terms, and all terms stayed alive. Counts in graph nodes stand for
Inductor's own operations, of which they are nearly one each. Read-only.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import fx

from fxcompress.passes import devices
from fxcompress.passes.follow import follow
from fxcompress.passes.ops import is_random, is_view
from fxcompress.passes.phases import Phase
from fxcompress.passes.traits import Traits

FOR_GPU: Mapping[str, int] = MappingProxyType(
    {"realize_opcount_threshold": 64, "realize_reads_threshold": 5, "realize_acc_reads_threshold": 12}
)
"""Settings of Inductor's for graphs on a GPU; its own are 30 operations, 8 reads, and 4 of what is read twice.

A decode brings some 20 operations and one read more than the tensor it stands for. At Inductor's own line, a batch
norm's derivative with its decoded argument is written in fp32 and read back (`python -m bench.traffic`, decision 14),
or computed in two expressions of one kernel, of which the second is written over no operand of the first.
"""
_ON_CPU: Mapping[str, int] = MappingProxyType(
    {"realize_opcount_threshold": 50, "realize_reads_threshold": 4, "realize_acc_reads_threshold": 12}
)
"""Inductor's own."""


@dataclass(frozen=True, slots=True)
class Expression:
    """What computing a value anew at a reader takes: nodes with their operations, each node once, as Inductor counts
    them, and whether heavy ones are among them."""

    parts: frozenset[tuple[fx.Node, int]] = frozenset()
    heavy: bool = False

    @property
    def operations(self) -> int:
        """In all."""
        return sum(count for _, count in self.parts)


def load(node: fx.Node) -> Expression:
    """A value that is in memory."""
    return Expression(frozenset([(node, 1)]))


def expression_of(node: fx.Node, traits: Traits, known: dict[fx.Node, Expression]) -> Expression:
    """What a pointwise node takes, given what its arguments do."""
    parts = [known.get(arg) or load(arg) for arg in traits.inputs]
    own = frozenset([(node, traits.operations)])
    return Expression(own.union(*(part.parts for part in parts)), traits.heavy or any(part.heavy for part in parts))


def stores(node: fx.Node, expression: Expression, reads: int, phase: Phase) -> bool:
    """Whether a pointwise result is stored, although every reader could compute it from `reads` buffers.

    `StorageBox.should_realize_on_reuse`, `has_exceeded_max_reads` and the thresholds in Inductor's config, as in 2.13,
    and `FOR_GPU`.
    """
    val = node.meta.get("val")
    if not isinstance(val, torch.Tensor):
        return False
    if node in phase.stored:
        return True
    if is_random(node):
        # Drawn once; a loop of other sizes, such as one that packs a mask, reads the numbers from memory.
        return _is_read_in_other_sizes(node, val.numel(), phase)
    on_cpu = devices.is_on_cpu(val)
    most = _ON_CPU if on_cpu else FOR_GPU
    if expression.operations > most["realize_opcount_threshold"] or reads > most["realize_acc_reads_threshold"]:
        return True
    heavy = on_cpu and expression.heavy
    return len(phase.users(node)) > 1 and (reads > most["realize_reads_threshold"] or heavy)


def _is_read_in_other_sizes(node: fx.Node, numel: int | torch.SymInt, phase: Phase) -> bool:
    """Whether the integers computed from `node`, a mask for example, are put together to fewer."""

    def further(value: fx.Node) -> list[fx.Node]:
        return [user for user in phase.users(value) if _passes_on(user)]

    return any(value.meta["val"].numel() != numel for value in follow([node], further))


def _passes_on(node: fx.Node) -> bool:
    """Whether it holds integers, or is a view."""
    val = node.meta.get("val")
    return isinstance(val, torch.Tensor) and (not val.dtype.is_floating_point or is_view(node))
