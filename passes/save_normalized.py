"""Save what a normalization made of a value, instead of the value, where its scales would share a group of codes.

All of `(x - mean) * rstd` is of one scale, so that an error which is a share of a group's range is the same share of
every channel's standard deviation. The backward gets x back as `saved / rstd + mean`, to rounding. A value that is
stored as it is in the end is saved itself (`restore_kept`).
"""

from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from fxcompress import compat
from fxcompress.passes.alias import find_storages
from fxcompress.passes.find_normalized import SAME_ORDER, Normalization, Normalized, keeps_order
from fxcompress.passes.find_saved import DESCRIPTIVE, SavedPair, find_saved, outputs
from fxcompress.passes.ops import ORIGIN, full_name, op_name
from fxcompress.passes.splice import (
    PREFIX,
    add_placeholder,
    add_saved,
    add_saved_size,
    drop_unused,
    place_behind,
    refresh_values,
    set_outputs,
)

_aten = torch.ops.aten
_cast = torch.ops.prims.convert_element_type.default
_PRECISE = (torch.float32, torch.float64)


@dataclass(frozen=True, slots=True)
class Replaced:
    """What was done for one value.

    Attributes:
        name: of the normalized value that is saved instead.
        exact: names of the mean and the standard deviation that are saved with it.
        original: the value, in the forward.
        rebuilt: the same in the backward.
    """

    name: str
    exact: tuple[str, str]
    original: fx.Node
    rebuilt: fx.Node


def save_normalized(
    fw: fx.GraphModule, bw: fx.GraphModule, found: Sequence[Normalized], num_fwd_outputs: int
) -> list[Replaced]:
    """Save normalized values for the tensors in `found`, those aside that share a storage or that the backward reads
    in another order than the normalization does.

    Args:
        fw, bw: the pair, edited in place.
        found: as `find_normalized` returns it.
        num_fwd_outputs: how many forward outputs are the user's.
    """
    pairs = find_saved(fw, bw, num_fwd_outputs=num_fwd_outputs)
    storages = find_storages(fw, pairs, num_fwd_outputs) if found else []
    alone = {storage.members[0].fw for storage in storages if len(storage.members) == 1 and not storage.held_by}
    known = {_unviewed(pair.fw): pair.bw for pair in reversed(pairs)}
    writer = _Writer(fw, bw, num_fwd_outputs, known, pairs[0] if pairs else None)
    done = []
    for each in found:
        base, read = _read_as(each)
        if each.pair.fw in alone and read is not None:
            rebuilt = writer.replace(each, base, read)
            done += [rebuilt] if rebuilt is not None else []
    if done:
        drop_unused(fw, bw, find_saved(fw, bw, num_fwd_outputs=num_fwd_outputs))
    return done


def restore_kept(
    fw: fx.GraphModule, bw: fx.GraphModule, replaced: Sequence[Replaced], kept: Set[str], num_fwd_outputs: int
) -> int:
    """Save the values themselves again, in the same places, whose normalized ones are `kept`; returns how many."""
    pairs = {pair.bw.name: pair for pair in find_saved(fw, bw, num_fwd_outputs=num_fwd_outputs)}
    again = [each for each in replaced if each.name in kept]
    for each in again:
        pair, outs = pairs[each.name], outputs(fw)
        each.original._rename(PREFIX + each.original.name)
        partner = add_placeholder(bw, each.original, each.original.name, pair.bw)
        each.rebuilt.replace_all_uses_with(partner)
        set_outputs(fw, [*outs[: pair.position], each.original, *outs[pair.position + 1 :]])
    bw.graph.eliminate_dead_code()
    fw.graph.eliminate_dead_code()
    for each in again:
        bw.graph.erase_node(pairs[each.name].bw)
    return len(again)


def _read_as(each: Normalized) -> tuple[fx.Node, fx.Node | None]:
    """The last of `each.way` from which views and casts lead on, and the backward node that holds the same, if what
    is saved is read as nothing else."""
    last = max((i for i, node in enumerate(each.way) if i and not keeps_order(node)), default=0)
    read = each.pair.bw
    for step in each.way[1 : last + 1]:
        user, *others = read.users
        if others or user.target is not step.target or (user.args[1:], user.kwargs) != (step.args[1:], step.kwargs):
            return each.way[last], None
        read = user
    return each.way[last], read


@dataclass(slots=True)
class _Writer:
    """A pair; the backward's placeholders of what is saved, by what it is a view of; the first saved tensor."""

    fw: fx.GraphModule
    bw: fx.GraphModule
    num_fwd_outputs: int
    known: dict[fx.Node, fx.Node]
    front: SavedPair | None

    def replace(self, each: Normalized, base: fx.Node, read: fx.Node) -> Replaced | None:
        """Save the normalized value and have the backward read what is rebuilt of it; None if its layout is another."""
        by, dtype = each.by, base.meta["val"].dtype
        if by.result in self.known or not _comes_back(by, base):
            return None
        normalized, rstd = self._normalize(by, base)
        normalized.meta |= {key: each.pair.fw.meta[key] for key in DESCRIPTIVE if key in each.pair.fw.meta}
        normalized.meta[ORIGIN] = full_name(each.pair.fw)
        normalized._rename(f"{PREFIX}normalized_{each.pair.fw.name}")
        saved, mean, factor = self._save(normalized), self._save(by.mean), self._save(rstd)
        exact = mean.name, factor.name
        with self.bw.graph.inserting_before(min(read.users)):
            mean, factor = (
                _spread(self.bw, self._lying_as(like, stat) if by.spread is None else stat, by)
                for like, stat in ((by.mean, mean), (rstd, factor))
            )
            deviation = factor if by.divides else _call(self.bw, _aten.reciprocal.default, (factor,), factor)
            rebuilt = _cast_to(self.bw, _multiply_add(self.bw, by, saved, deviation, mean, read), dtype)
            rebuilt = self._lying_as(base, rebuilt)
        read.replace_all_uses_with(rebuilt)
        return Replaced(saved.name, exact, base, rebuilt)

    def _normalize(self, by: Normalization, base: fx.Node) -> tuple[fx.Node, fx.Node]:
        """The normalized value in the dtype of `base`, and what it is multiplied with or divided by."""
        node, rstd, dtype = by.result, by.rstd, base.meta["val"].dtype
        anchor = node or max(by.value, by.mean, by.rstd)
        while anchor.next.op == "placeholder":
            anchor = anchor.next
        with self.fw.graph.inserting_before(anchor.next):
            if by.eps is not None:
                variance = _call(self.fw, _aten.add.Scalar, (rstd, by.eps), rstd)
                rstd = _call(self.fw, _aten.rsqrt.default, (variance,), rstd)
            if node is None:
                mean, factor = (_spread(self.fw, stat, by) for stat in (by.mean, rstd))
                shift = _call(
                    self.fw, _aten.neg.default, (_call(self.fw, _aten.mul.Tensor, (mean, factor), mean),), mean
                )
                node = _multiply_add(self.fw, by, by.value, factor, shift, base)
            return _cast_to(self.fw, node, dtype), rstd

    def _lying_as(self, like: fx.Node, node: fx.Node) -> fx.Node:
        """The backward's `node` viewed as the forward's `like` is."""
        shape = like.meta["val"].shape
        symbols = [dim for dim, size in enumerate(shape) if not isinstance(size, int)]
        if [*map(str, node.meta["val"].shape)] == [*map(str, shape)]:
            return node
        sizes: list[int | fx.Node] = [*shape]
        for dim in symbols:
            sizes[dim] = -1 if len(symbols) == 1 else self._saved_size(like, dim)
        return _viewed(self.bw, node, sizes)

    def _saved_size(self, node: fx.Node, dim: int) -> fx.Node:
        with self.fw.graph.inserting_before(place_behind(node)):
            size = self.fw.graph.create_node(
                "call_function", _aten.sym_size.int, (node, dim), {}, name=f"{PREFIX}size_{node.name}_{dim}"
            )
        size.meta["val"] = node.meta["val"].shape[dim]
        return add_saved_size(self.fw, self.bw, size)

    def _save(self, node: fx.Node) -> fx.Node:
        """The backward's placeholder that holds the elements of `node`, saved if it was not."""
        root = _unviewed(node)
        if root not in self.known:
            if not node.name.startswith(f"{PREFIX}normalized_"):
                node._rename(f"{PREFIX}saved_{root.name}")
            partner = add_saved(self.fw, self.bw, node, self.num_fwd_outputs, self.front)
            position = self.num_fwd_outputs if self.front is None else self.front.position
            self.front = SavedPair(position, node, partner)
            self.known[root] = partner
        return self.known[root]


def _comes_back(by: Normalization, base: fx.Node) -> bool:
    """Whether what is rebuilt lies as `base` does."""
    value, wanted = by.value.meta["val"], base.meta["val"]
    with compat.fake_mode_of([value]):
        rebuilt = value * 2
        same = [*map(str, value.shape)] == [*map(str, wanted.shape)]
        strides = (rebuilt if same else rebuilt.view(wanted.shape)).stride()
    return [*map(str, strides)] == [*map(str, wanted.stride())]


def _spread(gm: fx.GraphModule, node: fx.Node, by: Normalization) -> fx.Node:
    """A statistic, in fp32 or fp64, in the sizes in which it meets the value: its own, or as stated."""
    if by.spread is None:
        return _precise(gm, node)
    if by.repeat > 1:
        node = _viewed(gm, node, (-1, by.spread[1] // by.repeat, 1))
        node = _call(gm, _aten.repeat.default, (node, [1, 1, by.repeat]), node)
    return _precise(gm, _viewed(gm, node, by.spread))


def _multiply_add(
    gm: fx.GraphModule, by: Normalization, value: fx.Node, factor: fx.Node, term: fx.Node, like: fx.Node
) -> fx.Node:
    """`value · factor + term`: one operator where each is run by itself, two where a compiler fuses them."""
    if not by.apart:
        return _call(gm, _aten.addcmul.default, (term, value, factor), like)
    return _call(gm, _aten.add.Tensor, (_call(gm, _aten.mul.Tensor, (value, factor), like), term), like)


def _unviewed(node: fx.Node) -> fx.Node:
    while op_name(node) in SAME_ORDER:
        node = node.all_input_nodes[0]
    return node


def _viewed(gm: fx.GraphModule, node: fx.Node, sizes: Sequence[int | fx.Node]) -> fx.Node:
    if [*map(str, node.meta["val"].shape)] == [*map(str, sizes)]:
        return node
    return _call(gm, _aten.view.default, (node, [*sizes]), node)


def _precise(gm: fx.GraphModule, stat: fx.Node) -> fx.Node:
    """`stat` in fp32 or fp64, which CPU kernels return where their fake ones say bf16."""
    return stat if stat.meta["val"].dtype in _PRECISE else _call(gm, _cast, (stat, torch.float32), stat)


def _cast_to(gm: fx.GraphModule, node: fx.Node, dtype: torch.dtype) -> fx.Node:
    found = node.meta["val"].dtype
    return node if found is dtype and dtype in _PRECISE else _call(gm, _cast, (node, dtype), node)


def _call(gm: fx.GraphModule, target: Callable[..., object], args: tuple[Any, ...], like: fx.Node) -> fx.Node:
    """A new call with what describes `like`."""
    node = gm.graph.call_function(target, args, name=f"{PREFIX}normal")
    node.meta = {key: value for key, value in like.meta.items() if key in (*DESCRIPTIVE, "val")}
    refresh_values([node])
    return node
