"""Bytes that a kernel for a chain and its encodes saves, and those that Inductor's kernels move more for it.

Counted against the best that Inductor could do: two generated kernels that read a tensor are taken for one, unless the
second needs what only another kernel in between has: a library's result, or a sum over other elements than its own.
Read-only.
"""

from collections.abc import Collection
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import fx

from fxcompress.codecs.order import memory_order
from fxcompress.passes.alias import nbytes_of
from fxcompress.passes.follow import follow
from fxcompress.passes.grow_chain import Facts, is_mask, is_read_in_memory
from fxcompress.passes.ops import REDUCTIONS, is_view, op_name
from fxcompress.passes.same_place import readers_of
from fxcompress.passes.traits import is_opaque
from fxcompress.plan import ATEN, TRITON


@dataclass(frozen=True, slots=True)
class Traffic:
    """Of the chain that computes `nodes` from `inputs`."""

    nodes: Collection[fx.Node]
    inputs: Collection[fx.Node]
    facts: Facts

    def saved_nbytes(
        self, encoded: Collection[fx.Node], masks: Collection[fx.Node], stored: Collection[fx.Node]
    ) -> int:
        """Reads of masks and of encodes that are kernels of ours, and writes of what is stored for those alone."""
        saved = 0
        for value in encoded:
            if self.facts.lowering(value) == TRITON:
                alone = value in self.nodes and value not in stored
                saved += (2 if alone else 1) * nbytes_of(value.meta["val"])
        compared = [argument for mask in masks for argument in mask.all_input_nodes]
        return saved + sum(nbytes_of(argument.meta["val"]) for argument in compared)

    def lost_nbytes(self, values: Collection[fx.Node], encoded: Collection[fx.Node], held: Collection[int]) -> int:
        """Reads by generated kernels besides the chain's, and writes of what is stored for those alone.

        Args:
            values: what the chain reads and stores of its own size.
            encoded: those of them that it encodes.
            held: encodings that chains found so far hold.
        """
        # A kernel for masks alone stands in nobody's place.
        alone = all(is_mask(node) for node in self.nodes)
        lost = sum(nbytes_of(value.meta["val"]) for value in values if alone)
        before = self._ancestors()
        for value in values:
            nbytes = nbytes_of(value.meta["val"])
            readers = [reader for reader in readers_of(value) if reader not in self.nodes]
            if value in self.nodes:
                readers = [reader for reader in readers if not self.facts.is_behind_library(reader, value)]
            aten = self.facts.lowering(value) == ATEN and self.facts.number[value] not in held
            if aten and value not in encoded:
                lost += nbytes
            if any(self._shares(reader, before) for reader in readers):
                lost += nbytes
            written = self.facts.lowering(value) == TRITON or is_read_in_memory(value, self.facts)
            if value in self.nodes and not written:
                lost += nbytes
        return lost

    def _shares(self, reader: fx.Node, before: set[fx.Node]) -> bool:
        """Whether a kernel that computes `reader` could be one with the chain's: a pointwise result that is in no
        memory is computed where it is read."""
        seen, waiting = {reader}, [reader]
        while waiting:
            node = waiting.pop()
            if is_opaque(node) or node in self.facts.made:
                continue
            sums = op_name(node) in REDUCTIONS
            if sums and node in before and _sums_across(node):
                continue
            if sums or node in self.facts.kept or node in self.facts.returned or node in self.facts.number:
                return True
            following = [reader for reader in readers_of(node) if reader not in seen]
            seen.update(following)
            waiting.extend(following)
        return False

    def _ancestors(self) -> set[fx.Node]:
        """All that the chain's inputs are computed from by generated kernels."""
        return set(follow(self.inputs, _generated_from))


def _generated_from(node: fx.Node) -> list[fx.Node]:
    return [] if is_opaque(node) and not is_view(node) else node.all_input_nodes


def _sums_across(reduction: fx.Node) -> bool:
    """Whether it keeps a dimension that runs faster in memory than one that it reduces: then no thread has the result
    before all have read."""
    given = reduction.args[0]
    dims = reduction.args[1] if len(reduction.args) > 1 else None
    if not isinstance(given, fx.Node) or not isinstance(dims, (list, tuple)):
        return False
    val = given.meta["val"]
    order = memory_order(val) if isinstance(val, torch.Tensor) else None
    if order is None:
        return False
    reduced = {int(dim) % val.dim() for dim in dims}
    kinds = [dim in reduced for dim in order.dims if val.shape[dim] != 1]
    return any(first and not second for first, second in pairwise(kinds))
