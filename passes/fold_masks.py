"""Let the code of a normalized value answer for the mask of the ReLU behind it.

What the backward asks of `y = normalized · weight + bias` is, element by element, whether it passed. That is a bit in
memory beside the few of the normalized value. Stored as the distance from where the ReLU bends,

    distance = sign(weight) · normalized + bias / |weight|,

the value has the sign of y, and a codec that keeps signs stores both in the bits of one. `bias / |weight|` is clamped,
since channels share scales; so the distance is, where y says so, cut at zero: signs are those of y, whatever rounding,
a weight of zero or the clamp make of the sum.
"""

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace

import torch
from torch import fx

from fxcompress.passes.find_normalized import Normalized, find_ways, keeps_order
from fxcompress.passes.find_saved import DESCRIPTIVE, SavedPair, find_saved, outputs
from fxcompress.passes.ops import ORIGIN, SIGNED, op_name
from fxcompress.passes.pair_writer import PairWriter, call, cast_to, is_alike, precise, writer_of
from fxcompress.passes.save_normalized import Replaced
from fxcompress.passes.splice import PREFIX, add_placeholder, drop_unused, place_behind, set_outputs

_aten = torch.ops.aten
_COMPARISONS = ("le", "gt")
_RELUS = ("relu", "leaky_relu")
FARTHEST = 4.0
"""Standard deviations from the mean at which a ReLU may bend; few channels bend beyond, and they hardly pass, or
hardly stop, anything."""
REACH = 4.5
"""How far values are taken to lie from the mean, on either side."""
_SMALLEST_WEIGHT = 1e-20
_SMALLEST_DISTANCE = 2.0**-24
"""Positive in fp16, too."""


@dataclass(frozen=True, slots=True)
class Fold:
    """A mask, and the saved tensor whose normalization it is asked of.

    Attributes:
        normalized: the tensor.
        mask: the saved answer.
        compared: the forward node that was compared with zero.
        weight, bias: forward nodes, None where the normalization has none.
    """

    normalized: Normalized
    mask: SavedPair
    compared: fx.Node
    weight: fx.Node | None
    bias: fx.Node | None


def find_folds(fw: fx.GraphModule, pairs: Sequence[SavedPair], names: Set[str]) -> list[Fold]:
    """Masks that the normalized values of saved tensors can answer for, one for each tensor. Read-only.

    Args:
        fw: the forward.
        pairs: what it saves.
        names: tensors that may become lossy, in codes that keep signs.
    """
    saved = {pair.fw: pair for pair in pairs if pair.bw.name in names}
    normalized = {each.by.result: each for each in find_ways(fw, saved) if each.by.result is not None}
    found: dict[fx.Node, Fold] = {}
    for pair in pairs:
        fold = _fold_of(pair, normalized)
        if fold is not None:
            found.setdefault(fold.normalized.pair.fw, fold)
    return list(found.values())


def fold_masks(
    fw: fx.GraphModule, bw: fx.GraphModule, folds: Sequence[Fold], replaced: Sequence[Replaced], num_fwd_outputs: int
) -> list[Replaced]:
    """Save distances instead of normalized values and masks; returns `replaced` with what was done.

    Args:
        fw, bw: the pair, edited in place.
        folds: as `find_folds` returns them.
        replaced: what `save_normalized` did for their tensors, and others.
        num_fwd_outputs: how many forward outputs are the user's.
    """
    writer = writer_of(fw, bw, num_fwd_outputs)
    done = {each.source: each for each in replaced}
    for fold in folds:
        source = fold.normalized.pair.fw
        if source in done:
            done[source] = _fold(writer, fold, done[source])
    if folds:
        drop_unused(fw, bw, find_saved(fw, bw, num_fwd_outputs=num_fwd_outputs))
    return list(done.values())


def _fold_of(pair: SavedPair, normalized: Mapping[fx.Node, Normalized]) -> Fold | None:
    mask = pair.fw
    if op_name(mask) not in _COMPARISONS or mask.args[1:] != (0,) or not isinstance(mask.args[0], fx.Node):
        return None
    value = mask.args[0]
    while keeps_order(value) or op_name(value) in _RELUS:
        value = value.all_input_nodes[0]
    for bias, scaled in _taken_apart(value, "add"):
        for weight, result in _taken_apart(scaled, "mul"):
            each = normalized.get(result)
            if each is not None and is_alike(result, mask) and all(map(_is_small, (weight, bias), (result, result))):
                return Fold(each, pair, mask.args[0], weight, bias)
    return None


def _taken_apart(node: fx.Node, name: str) -> Iterator[tuple[fx.Node | None, fx.Node]]:
    """`node` as an operand and the rest; as it is, too."""
    yield None, node
    args = node.args
    if op_name(node) == name and len(args) == 2 and not node.kwargs:
        for one, other in (args, args[::-1]):
            if isinstance(one, fx.Node) and isinstance(other, fx.Node):
                yield one, other


def _is_small(node: fx.Node | None, like: fx.Node) -> bool:
    """Whether it has an element for each channel, and sizes that are known."""
    if node is None:
        return True
    val, large = node.meta["val"], like.meta["val"]
    static = all(isinstance(size, int) for size in val.shape)
    return static and bool(val.dtype.is_floating_point) and val.dim() <= large.dim() and val.numel() * 8 <= _size(large)


def _size(val: torch.Tensor) -> int:
    """Elements, symbolic sizes counted as many."""
    return torch.Size([size if isinstance(size, int) else 2**20 for size in val.shape]).numel()


def _fold(writer: PairWriter, fold: Fold, done: Replaced) -> Replaced:
    fw, bw, by = writer.fw, writer.bw, fold.normalized.by
    pairs = {pair.bw.name: pair for pair in find_saved(fw, bw, num_fwd_outputs=writer.num_fwd_outputs)}
    before = pairs[done.name]
    assert by.result is not None
    with fw.graph.inserting_before(place_behind(max(fold.compared, before.fw))):
        place = _bend(fw, fold.weight, fold.bias)
        distance = _distance(fw, by.result, place, fold.compared)
        distance = cast_to(fw, distance, before.fw.meta["val"].dtype)
    distance.meta |= {key: before.fw.meta[key] for key in (*DESCRIPTIVE, ORIGIN) if key in before.fw.meta}
    distance.meta[SIGNED] = True
    distance._rename(f"{PREFIX}distance_{done.source.name}")
    if place is not None:
        place._rename(f"{PREFIX}bend_{done.source.name}")
    saved = _exchange(writer, before, distance)
    bend = None if place is None else writer.save(place)
    first = min((*before.bw.users, *fold.mask.bw.users))
    with bw.graph.inserting_before(first):
        mask = call(bw, fold.mask.fw.target, (saved, 0), fold.mask.bw)  # type: ignore[arg-type]
        value = saved if bend is None else _normalized(bw, saved, bend)
        value = cast_to(bw, value, before.fw.meta["val"].dtype)
    writer.known = {node: known for node, known in writer.known.items() if known is not before.bw}
    before.bw.replace_all_uses_with(value)
    fold.mask.bw.replace_all_uses_with(mask)
    bw.graph.erase_node(before.bw)
    exact = done.exact if bend is None else (*done.exact, bend.name)
    return replace(done, name=saved.name, exact=exact, normalized=value, mask=mask, compared=fold.compared)


def _exchange(writer: PairWriter, before: SavedPair, node: fx.Node) -> fx.Node:
    """Save `node` in the place of what was saved `before`, whose placeholder is still to be erased."""
    outs = outputs(writer.fw)
    saved = add_placeholder(writer.bw, node, node.name, before.bw)
    set_outputs(writer.fw, [*outs[: before.position], node, *outs[before.position + 1 :]])
    if writer.front is not None and writer.front.bw is before.bw:
        writer.front = SavedPair(before.position, node, saved)
    return saved


def _distance(fw: fx.GraphModule, result: fx.Node, bend: fx.Node | None, compared: fx.Node) -> fx.Node:
    passes = call(fw, _aten.gt.Scalar, (compared, 0), compared)
    above, below = result, result
    if bend is not None:
        sign, shift = _unpacked(fw, bend)
        above, below = (_share_of_reach(fw, result, sign, shift, side) for side in (1.0, -1.0))
    above = call(fw, _aten.clamp_min.default, (above, _SMALLEST_DISTANCE), result)
    below = call(fw, _aten.clamp_max.default, (below, 0.0), result)
    return call(fw, _aten.where.self, (passes, above, below), result)


def _share_of_reach(fw: fx.GraphModule, result: fx.Node, sign: fx.Node, shift: fx.Node, side: float) -> fx.Node:
    """`(sign · normalized + shift) / (REACH ± shift)`, with no more than one product and one sum for each element."""
    reach = call(fw, _aten.add.Tensor, (call(fw, _aten.mul.Tensor, (shift, side), shift), REACH), shift)
    reach = call(fw, _aten.reciprocal.default, (reach,), shift)
    factor, term = (call(fw, _aten.mul.Tensor, (each, reach), shift) for each in (sign, shift))
    return call(fw, _aten.add.Tensor, (call(fw, _aten.mul.Tensor, (result, factor), result), term), result)


def _unpacked(gm: fx.GraphModule, bend: fx.Node) -> tuple[fx.Node, fx.Node]:
    """Sign and shift of a bend."""
    size = call(gm, _aten.abs.default, (bend,), bend)
    return call(gm, _aten.sign.default, (bend,), bend), call(gm, _aten.sub.Tensor, (size, 2 * FARTHEST), bend)


def _normalized(bw: fx.GraphModule, saved: fx.Node, bend: fx.Node) -> fx.Node:
    """The normalized value of a distance: `(REACH · d + (|d| - 1) · shift) · sign`."""
    wide = cast_to(bw, saved, bend.meta["val"].dtype)
    sign, shift = _unpacked(bw, bend)
    size = call(bw, _aten.sub.Tensor, (call(bw, _aten.abs.default, (wide,), wide), 1.0), wide)
    scaled = call(bw, _aten.mul.Tensor, (wide, REACH), wide)
    value = call(bw, _aten.add.Tensor, (scaled, call(bw, _aten.mul.Tensor, (size, shift), wide)), wide)
    return call(bw, _aten.mul.Tensor, (value, sign), wide)


def _bend(gm: fx.GraphModule, weight: fx.Node | None, bias: fx.Node | None) -> fx.Node | None:
    """Where the ReLU bends, per channel: `sign(weight) · (shift + 8)`, with shift `bias / |weight|` within ±4; None if
    it bends at the mean, and passes what is above.

    One number, as Inductor would rather store what reads five tensors than compute it twice.
    """
    learned = bias if weight is None else weight
    if learned is None:
        return None
    learned = precise(gm, learned)
    shift = precise(gm, bias) if bias is not None else call(gm, _aten.mul.Tensor, (learned, 0.0), learned)
    if weight is None:
        shift = call(gm, _aten.clamp_min.default, (shift, -FARTHEST), shift)
        shift = call(gm, _aten.clamp_max.default, (shift, FARTHEST), shift)
        return call(gm, _aten.add.Tensor, (shift, 2 * FARTHEST), shift)
    size = call(gm, _aten.abs.default, (learned,), learned)
    size = call(gm, _aten.clamp_min.default, (size, _SMALLEST_WEIGHT), learned)
    shift = call(gm, _aten.div.Tensor, (shift, size), shift)
    shift = call(gm, _aten.clamp_min.default, (shift, -FARTHEST), shift)
    shift = call(gm, _aten.clamp_max.default, (shift, FARTHEST), shift)
    shift = call(gm, _aten.add.Tensor, (shift, 2 * FARTHEST), shift)
    return call(gm, _aten.copysign.Tensor, (shift, learned), shift)
