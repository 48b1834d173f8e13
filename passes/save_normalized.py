"""Save what a normalization made of a value, instead of the value, where its scales would share a group of codes.

All of `(x - mean) * rstd` is of one scale, so that an error which is a share of a group's range is the same share of
every channel's standard deviation. The backward gets x back as `saved / rstd + mean`, to rounding. A value that is
stored as it is in the end is saved itself (`restore_kept`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import fx

from fxcompress import compat
from fxcompress.passes.alias import find_storages
from fxcompress.passes.find_normalized import Normalization, Normalized, keeps_order
from fxcompress.passes.find_saved import DESCRIPTIVE, find_saved
from fxcompress.passes.ops import ORIGIN, full_name
from fxcompress.passes.pair_writer import PairWriter, call, cast_to, precise, viewed, writer_of
from fxcompress.passes.splice import PREFIX, drop_unused

_aten = torch.ops.aten


@dataclass(frozen=True, slots=True)
class Replaced:
    """What was done for one value.

    Attributes:
        source: the forward node that was saved.
        name: of the normalized value that is saved instead.
        exact: names of the mean and the standard deviation that are saved with it.
        original: the value, in the forward.
        rebuilt: the same in the backward.
        normalized: what is saved, in the backward, or what is computed of that.
        deviation: what it is multiplied with there.
        statistics: the backward's placeholders of the mean, and of what the value is multiplied with, or divided by.
        divides: whether it is divided.
        mask: in the backward, the answer that `fold_masks` asks of the value; None if it does not.
        compared: the forward node that PyTorch's backward asks it of.
    """

    source: fx.Node
    name: str
    exact: tuple[str, ...]
    original: fx.Node
    rebuilt: fx.Node
    normalized: fx.Node
    deviation: fx.Node
    statistics: tuple[fx.Node, fx.Node]
    divides: bool
    mask: fx.Node | None = None
    compared: fx.Node | None = None


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
    writer = writer_of(fw, bw, num_fwd_outputs)
    done = []
    for each in found:
        base, read = _read_as(each)
        if each.pair.fw in alone and read is not None:
            rebuilt = _replace(writer, each, base, read)
            done += [rebuilt] if rebuilt is not None else []
    if done:
        drop_unused(fw, bw, find_saved(fw, bw, num_fwd_outputs=num_fwd_outputs))
    return done


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


def _replace(writer: PairWriter, each: Normalized, base: fx.Node, read: fx.Node) -> Replaced | None:
    """Save the normalized value and have the backward read what is rebuilt of it; None if its layout is another."""
    by, dtype, bw = each.by, base.meta["val"].dtype, writer.bw
    if by.result in writer.known or not _comes_back(by, base):
        return None
    normalized, rstd = _normalize(writer.fw, by, base)
    normalized.meta |= {key: each.pair.fw.meta[key] for key in DESCRIPTIVE if key in each.pair.fw.meta}
    normalized.meta[ORIGIN] = full_name(each.pair.fw)
    normalized._rename(f"{PREFIX}normalized_{each.pair.fw.name}")
    saved, mean, factor = writer.save(normalized), writer.save(by.mean), writer.save(rstd)
    exact = mean.name, factor.name
    with bw.graph.inserting_before(min(read.users)):
        mean, factor = (
            _spread(bw, writer.lying_as(like, stat) if by.spread is None else stat, by)
            for like, stat in ((by.mean, mean), (rstd, factor))
        )
        deviation = factor if by.divides else call(bw, _aten.reciprocal.default, (factor,), factor)
        rebuilt = cast_to(bw, _multiply_add(bw, by, saved, deviation, mean, read), dtype)
        rebuilt = writer.lying_as(base, rebuilt)
    read.replace_all_uses_with(rebuilt)
    statistics = writer.save(by.mean), writer.save(rstd)
    return Replaced(each.pair.fw, saved.name, exact, base, rebuilt, saved, deviation, statistics, by.divides)


def _normalize(fw: fx.GraphModule, by: Normalization, base: fx.Node) -> tuple[fx.Node, fx.Node]:
    """The normalized value in the dtype of `base`, and what it is multiplied with or divided by."""
    node, rstd, dtype = by.result, by.rstd, base.meta["val"].dtype
    anchor = node or max(by.value, by.mean, by.rstd)
    while anchor.next.op == "placeholder":
        anchor = anchor.next
    with fw.graph.inserting_before(anchor.next):
        if by.eps is not None:
            variance = call(fw, _aten.add.Scalar, (rstd, by.eps), rstd)
            rstd = call(fw, _aten.rsqrt.default, (variance,), rstd)
        if node is None:
            mean, factor = (_spread(fw, stat, by) for stat in (by.mean, rstd))
            shift = call(fw, _aten.neg.default, (call(fw, _aten.mul.Tensor, (mean, factor), mean),), mean)
            node = _multiply_add(fw, by, by.value, factor, shift, base)
        return cast_to(fw, node, dtype), rstd


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
        return precise(gm, node)
    if by.repeat > 1:
        node = viewed(gm, node, (-1, by.spread[1] // by.repeat, 1))
        node = call(gm, _aten.repeat.default, (node, [1, 1, by.repeat]), node)
    return precise(gm, viewed(gm, node, by.spread))


def _multiply_add(
    gm: fx.GraphModule, by: Normalization, value: fx.Node, factor: fx.Node, term: fx.Node, like: fx.Node
) -> fx.Node:
    """`value · factor + term`: one operator where each is run by itself, two where a compiler fuses them."""
    if not by.apart:
        return call(gm, _aten.addcmul.default, (term, value, factor), like)
    return call(gm, _aten.add.Tensor, (call(gm, _aten.mul.Tensor, (value, factor), like), term), like)
