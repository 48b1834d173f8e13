"""Write values into both graphs of a pair: what is saved besides, and what is computed from it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from fxcompress.passes.find_normalized import SAME_ORDER
from fxcompress.passes.find_saved import DESCRIPTIVE, SavedPair, find_saved
from fxcompress.passes.ops import op_name
from fxcompress.passes.splice import PREFIX, add_saved, add_saved_size, place_behind, refresh_values

_aten = torch.ops.aten
_cast = torch.ops.prims.convert_element_type.default
_PRECISE = (torch.float32, torch.float64)


@dataclass(slots=True)
class PairWriter:
    """A pair; the backward's placeholders of what is saved, by what it is a view of; the first saved tensor."""

    fw: fx.GraphModule
    bw: fx.GraphModule
    num_fwd_outputs: int
    known: dict[fx.Node, fx.Node]
    front: SavedPair | None

    def save(self, node: fx.Node) -> fx.Node:
        """The backward's placeholder that holds the elements of `node`, saved if it was not."""
        root = unviewed(node)
        if root not in self.known:
            if node.op == "placeholder":
                node = self._view_of_input(node)
            elif not node.name.startswith(PREFIX):
                node._rename(f"{PREFIX}saved_{root.name}")
            partner = add_saved(self.fw, self.bw, node, self.num_fwd_outputs, self.front)
            position = self.num_fwd_outputs if self.front is None else self.front.position
            self.front = SavedPair(position, node, partner)
            self.known[root] = partner
        return self.known[root]

    def lying_as(self, like: fx.Node, node: fx.Node) -> fx.Node:
        """The backward's `node` viewed as the forward's `like` is."""
        shape = like.meta["val"].shape
        symbols = [dim for dim, size in enumerate(shape) if not isinstance(size, int)]
        if [*map(str, node.meta["val"].shape)] == [*map(str, shape)]:
            return node
        sizes: list[int | fx.Node] = [*shape]
        for dim in symbols:
            sizes[dim] = -1 if len(symbols) == 1 else self._saved_size(like, dim)
        return viewed(self.bw, node, sizes)

    def _view_of_input(self, node: fx.Node) -> fx.Node:
        """An input under a name that may be saved: the backward, from which it was dropped, does not free its own."""
        with self.fw.graph.inserting_before(place_behind(node)):
            view = call(self.fw, _aten.view.default, (node, [*node.meta["val"].shape]), node)
        view._rename(f"{PREFIX}saved_input")
        return view

    def _saved_size(self, node: fx.Node, dim: int) -> fx.Node:
        with self.fw.graph.inserting_before(place_behind(node)):
            size = self.fw.graph.create_node(
                "call_function", _aten.sym_size.int, (node, dim), {}, name=f"{PREFIX}size_{node.name}_{dim}"
            )
        size.meta["val"] = node.meta["val"].shape[dim]
        return add_saved_size(self.fw, self.bw, size)


def writer_of(fw: fx.GraphModule, bw: fx.GraphModule, num_fwd_outputs: int) -> PairWriter:
    """One that knows what is saved now."""
    pairs = find_saved(fw, bw, num_fwd_outputs=num_fwd_outputs)
    known = {unviewed(pair.fw): pair.bw for pair in reversed(pairs)}
    return PairWriter(fw, bw, num_fwd_outputs, known, pairs[0] if pairs else None)


def is_alike(one: fx.Node, two: fx.Node) -> bool:
    """Whether it has the other's sizes and lies in memory as that does."""
    a, b = one.meta["val"], two.meta["val"]
    return [*map(str, (*a.shape, *a.stride()))] == [*map(str, (*b.shape, *b.stride()))]


def unviewed(node: fx.Node) -> fx.Node:
    """What `node` is a view of, through views that leave the elements in their order."""
    while op_name(node) in SAME_ORDER:
        node = node.all_input_nodes[0]
    return node


def viewed(gm: fx.GraphModule, node: fx.Node, sizes: Sequence[int | fx.Node]) -> fx.Node:
    """`node` in these sizes."""
    if [*map(str, node.meta["val"].shape)] == [*map(str, sizes)]:
        return node
    return call(gm, _aten.view.default, (node, [*sizes]), node)


def precise(gm: fx.GraphModule, stat: fx.Node) -> fx.Node:
    """`stat` in fp32 or fp64, which CPU kernels return where their fake ones say bf16."""
    return stat if stat.meta["val"].dtype in _PRECISE else call(gm, _cast, (stat, torch.float32), stat)


def cast_to(gm: fx.GraphModule, node: fx.Node, dtype: torch.dtype) -> fx.Node:
    """`node` in `dtype`, said once more where it is one that fake kernels may say and real ones not return."""
    found = node.meta["val"].dtype
    return node if found is dtype and dtype in _PRECISE else call(gm, _cast, (node, dtype), node)


def call(gm: fx.GraphModule, target: Callable[..., object], args: tuple[Any, ...], like: fx.Node) -> fx.Node:
    """A new call with what describes `like`."""
    node = gm.graph.call_function(target, args, name=f"{PREFIX}normal")
    node.meta = {key: value for key, value in like.meta.items() if key in (*DESCRIPTIVE, "val")}
    refresh_values([node])
    return node
