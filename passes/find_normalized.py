"""Find what normalizations read where values of unlike scale share a group of codes.

The backward of a normalization divides by each channel's own standard deviation. Where channels lie side by side in
memory, as in channels_last maps and in the `[N, C]` of `BatchNorm1d`, or a channel's values fill no whole groups, a
group holds values of several channels, and its error, a share of the largest one's range, is many times a small one's.
`find_normalized` finds such values, with the mean and the reciprocal of the standard deviation that they are normalized
with: as PyTorch's operators, as compilers take them apart, or as a user spells `(x - mean) / std`. Read-only.

Rows of a layer normalization are another matter (`row_groups`): they are contiguous, so that groups can end with them.
"""

import operator
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace

import torch
from torch import fx

from fxcompress.codecs.order import Size, memory_order
from fxcompress.passes.find_channels_last import channels_last_order
from fxcompress.passes.find_saved import SavedPair
from fxcompress.passes.find_statistics import is_statistic
from fxcompress.passes.ops import op_name

Sizes = tuple[int, ...]
SAME_ORDER = frozenset("view reshape _unsafe_view detach alias squeeze unsqueeze".split())
"""Views of which a view leads back."""
_CASTS = frozenset(["convert_element_type", "_to_copy"])
_LAYOUTS = frozenset("clone contiguous permute transpose t".split())


@dataclass(frozen=True, slots=True)
class Normalization:
    """`(value - mean) * rstd`, all forward nodes.

    Attributes:
        value: what is normalized.
        spread: sizes that `mean` and `rstd` are viewed as; None if their own.
        repeat: how many channels one of their elements stands for.
        eps: what to add to the variance that `rstd` is then, before taking the reciprocal of its root; None if none.
        divides: whether `rstd` is the standard deviation itself.
        apart: whether it is spelled in operators that a compiler fuses.
        result: the node that holds the normalized value; None if there is none.
    """

    value: fx.Node
    mean: fx.Node
    rstd: fx.Node
    spread: Sizes | None = None
    repeat: int = 1
    eps: float | None = None
    divides: bool = False
    apart: bool = False
    result: fx.Node | None = None


@dataclass(frozen=True, slots=True)
class Normalized:
    """A saved tensor and its normalization; `way`: what leads from it to `Normalization.value`, both included."""

    pair: SavedPair
    by: Normalization
    way: tuple[fx.Node, ...]


def find_normalized(
    fw: fx.GraphModule, pairs: list[SavedPair], names: Set[str], channels_last: Set[str], group: int
) -> list[Normalized]:
    """Saved tensors of which a group of codes would hold values that are normalized by unlike numbers.

    Args:
        fw: the forward.
        pairs: what it saves.
        names: those that may become lossy.
        channels_last: shapes that the inner compiler will lay out with channels last.
        group: elements that share a scale.
    """
    found: dict[str, Normalized] = {}
    for each in find_ways(fw, {pair.fw: pair for pair in pairs if pair.bw.name in names}):
        if each.pair.bw.name not in found and _shares(each.by, each.way, channels_last, group):
            found[each.pair.bw.name] = each
    return list(found.values())


def find_ways(fw: fx.GraphModule, saved: Mapping[fx.Node, SavedPair]) -> Iterator[Normalized]:
    """Normalizations of saved tensors, by the forward node that is saved."""
    for by in _normalizations(fw):
        way = _way(by.value, saved)
        if way:
            yield Normalized(saved[way[0]], by, way)


def keeps_order(node: fx.Node) -> bool:
    """Whether a view and a cast lead back from `node` to what it is made of."""
    return op_name(node) in SAME_ORDER or op_name(node) in _CASTS


def _way(value: fx.Node, saved: Mapping[fx.Node, SavedPair]) -> tuple[fx.Node, ...]:
    """From the nearest saved node that holds the elements of `value` to `value`; empty if there is none."""
    way = [value]
    while way[-1] not in saved:
        node = way[-1]
        if not (keeps_order(node) or op_name(node) in _LAYOUTS):
            return ()
        way.append(node.all_input_nodes[0])
    return tuple(reversed(way))


def _normalizations(fw: fx.GraphModule) -> Iterator[Normalization]:
    for node in fw.graph.nodes:
        name = op_name(node)
        if node.op != "call_function" or not isinstance(node.args[0] if node.args else None, fx.Node):
            continue
        if name in ("mul", "div"):
            found = _spelled(node)
        elif "batch_norm" in name and "backward" not in name:
            found = _batch_norm(node)
        else:
            found = _BY_NAME[name](node) if name in _BY_NAME else None
        if found is not None:
            yield found


def _spelled(node: fx.Node) -> Normalization | None:
    """`(x - mean) * rstd` or `(x - mean) / std`."""
    for centered, factor in (node.args[:2], reversed(node.args[:2])):
        if not (isinstance(centered, fx.Node) and isinstance(factor, fx.Node) and op_name(centered) == "sub"):
            continue
        value, mean = centered.args[:2]
        if not (isinstance(value, fx.Node) and isinstance(mean, fx.Node)) or len(centered.kwargs):
            continue
        spread = _is_spread(mean, value) and _is_spread(factor, value)
        divides = op_name(node) == "div"
        if spread and _is_deviation(factor) and (not divides or factor is node.args[1]):
            return Normalization(value, mean, factor, divides=divides, apart=True, result=node)
    return None


def _is_spread(stat: fx.Node, value: fx.Node) -> bool:
    """Whether each element of `stat` stands for several of `value`."""
    small, large = stat.meta.get("val"), value.meta.get("val")
    if not (isinstance(small, torch.Tensor) and isinstance(large, torch.Tensor)):
        return False
    shape = [1] * (large.dim() - small.dim()) + list(small.shape)
    return len(shape) == large.dim() and any(a == 1 and str(b) != "1" for a, b in zip(shape, large.shape, strict=True))


def _is_deviation(node: fx.Node) -> bool:
    """Whether `node` is made of the root of a statistic, or of one plus a constant, by what computes on one tensor."""
    while op_name(node) not in ("rsqrt", "sqrt", "std"):
        inputs = node.all_input_nodes
        if len(inputs) != 1 or node.op != "call_function":
            return False
        node = inputs[0]
    (variance,) = node.all_input_nodes
    # The root of a parameter may be zero, and what was multiplied by that does not come back.
    return is_statistic(node) or (op_name(variance) == "add" and isinstance(variance.args[1], (int, float)))


def _layer_norm(node: fx.Node) -> Normalization | None:
    value = node.args[0]
    mean, rstd = _result(node, 1), _result(node, 2)
    if not isinstance(value, fx.Node) or mean is None or rstd is None:
        return None
    return Normalization(value, mean, rstd)


def _batch_norm(node: fx.Node) -> Normalization | None:
    value = node.args[0]
    dims = value.meta["val"].dim() - 2 if isinstance(value, fx.Node) else -1
    if dims < 0 or not isinstance(value, fx.Node):
        return None
    spread = (1, -1, *[1] * dims)
    mean, rstd = _result(node, 1), _result(node, 2)
    if mean is not None and rstd is not None and str(mean.meta["val"].numel()) != "0":
        return Normalization(value, mean, rstd, spread=spread)
    if "no_training" not in op_name(node):
        return None
    running_mean, running_var, _, eps = node.args[3:7]
    if not (isinstance(running_mean, fx.Node) and isinstance(running_var, fx.Node) and isinstance(eps, float)):
        return None
    return Normalization(value, running_mean, running_var, spread=spread, eps=eps)


def _group_norm(node: fx.Node) -> Normalization | None:
    value, groups = node.args[0], node.args[6]
    mean, rstd = _result(node, 1), _result(node, 2)
    if not isinstance(value, fx.Node) or not isinstance(groups, int) or mean is None or rstd is None:
        return None
    return _by_groups(value, groups, mean, rstd)


def _apart_group_norm(node: fx.Node) -> Normalization | None:
    """Moments of `value` viewed as [N, groups, channels of a group, space], as Inductor takes them."""
    viewed, dims = node.args[:2]
    if not isinstance(viewed, fx.Node) or op_name(viewed) not in ("view", "reshape") or dims != [2, 3]:
        return None
    value, groups = viewed.args[0], viewed.meta["val"].shape[1]
    mean, variance = _result(node, 1), _result(node, 0)
    if not isinstance(value, fx.Node) or not isinstance(groups, int) or mean is None or variance is None:
        return None
    added = next((user for user in variance.users if op_name(user) == "add"), variance)
    rstd = next((user for user in added.users if op_name(user) == "rsqrt"), None)
    found = _by_groups(value, groups, mean, rstd) if rstd is not None else None
    return replace(found, apart=True) if found is not None else None


def _by_groups(value: fx.Node, groups: int, mean: fx.Node, rstd: fx.Node) -> Normalization | None:
    _, channels, *space = value.meta["val"].shape
    if not isinstance(channels, int) or not space or channels % groups:
        return None
    return Normalization(value, mean, rstd, (-1, channels, *[1] * len(space)), repeat=channels // groups)


_BY_NAME = {"native_layer_norm": _layer_norm, "native_group_norm": _group_norm, "var_mean": _apart_group_norm}


def _result(node: fx.Node, place: int) -> fx.Node | None:
    return next((user for user in node.users if user.target is operator.getitem and user.args[1] == place), None)


def _shares(by: Normalization, way: Sequence[fx.Node], channels_last: Set[str], group: int) -> bool:
    """Whether `group` elements of the first of `way` that lie side by side are normalized by more than one number.

    Where its order in memory is not that of what is normalized, they are taken to be.
    """
    val = by.value.meta["val"]
    order = memory_order(val)
    if order is None:
        return False
    if str(tuple(val.shape)) in channels_last and val.is_contiguous():
        order = channels_last_order(val)
    dims, varies = [*order.dims], _varying(by, val.dim())
    run: Size = 1
    while dims and dims[-1] not in varies:
        run *= val.shape[dims.pop()]
    run *= by.repeat if dims and dims[-1] == 1 else 1
    if not dims or (by.spread is None and set(dims) == {*range(val.dim() - 1)} and _is_in_rows(way[0], by.value)):
        return False
    return not all(map(keeps_order, way[1:])) or not (isinstance(run, int) and run % group == 0)


def _is_in_rows(node: fx.Node, value: fx.Node) -> bool:
    """Whether what the last dimension of `value` holds lies side by side in `node`, as `row_groups` asks."""
    val, width = node.meta["val"], value.meta["val"].shape[-1]
    return str(val.stride(-1)) == "1" and str(val.shape[-1]) == str(width)


def _varying(by: Normalization, rank: int) -> set[int]:
    """Dimensions along which the mean differs."""
    if by.spread is not None:
        return {0, 1} if by.repeat > 1 else {1}
    shape = by.mean.meta["val"].shape
    return {dim + rank - len(shape) for dim, size in enumerate(shape) if str(size) != "1"}
