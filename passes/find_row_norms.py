"""Tell what divides rows by a number of their own: normalizations as operators, taken apart, or as users spell them.

`normalizes_rows(node)` looks at one reader of a tensor, and follows what it reduces each row to until something is
divided by it: a standard deviation, a length, a sum of magnitudes, a range. `normalizes_images(node)` does for what is
reduced along several dimensions, but not along the first. Read-only.
"""

from collections.abc import Callable

import torch
from torch import fx

from fxcompress.passes.follow import follow
from fxcompress.passes.ops import MOVES, is_view, op_name

_MAGNITUDES = frozenset("pow square mul abs".split())
_MOMENTS = frozenset(["var_mean", "var"])
_LENGTHS = frozenset(["linalg_vector_norm", "norm"])
_NUMBERS = frozenset(["amax", "amin", "std"]) | _LENGTHS
_SCALARS = frozenset("add sub mul clamp clamp_min maximum sqrt".split()) | MOVES
"""What may be done to a row's number before something is divided by it."""


def normalizes_rows(node: fx.Node) -> bool:
    """Whether `node`, or what is made of its rows, divides each row of what it reads by a number of its own."""
    return "layer_norm" in op_name(node) or "rms_norm" in op_name(node) or _normalizes(node, _is_along_rows)


def normalizes_images(node: fx.Node) -> bool:
    """Whether `node`, or what is made of it, divides each image of what it reads, or parts of one, by a number of
    their own; instances of a batch are viewed as channels of one image."""
    name = op_name(node)
    if "group_norm" in name:
        return True
    if "layer_norm" in name or "rms_norm" in name:
        sizes = node.args[1]
        return isinstance(sizes, (list, tuple)) and len(sizes) > 1
    if "batch_norm" in name:
        source = node.args[0]
        return isinstance(source, fx.Node) and str(source.meta["val"].shape[0]) == "1"
    return _normalizes(node, _is_along_images)


def _normalizes(node: fx.Node, is_along: Callable[[fx.Node], bool]) -> bool:
    """Whether `node` belongs to what divides by numbers that it reduces as `is_along` says."""
    name = op_name(node)
    if name in _MAGNITUDES:
        return any(_is_divisor(user, is_along) for user in node.users)
    if name in _NUMBERS:
        return is_along(node) and _divides(node)
    return name in _MOMENTS and is_along(node)


def _is_divisor(node: fx.Node, is_along: Callable[[fx.Node], bool]) -> bool:
    """Whether `node` reduces magnitudes as `is_along` says, and something is divided by what it gives."""
    name = op_name(node)
    return name in ("sum", "mean", "amax") and is_along(node) and (name == "mean" or _divides(node))


def _is_along_rows(node: fx.Node) -> bool:
    """Whether a reduction is along the last dimension alone."""
    source, dims = _reduced(node)
    return source is not None and dims == {source.dim() - 1}


def _is_along_images(node: fx.Node) -> bool:
    """Whether a reduction is along several dimensions, and each image has numbers of its own."""
    source, dims = _reduced(node)
    return source is not None and len(dims) > 1 and (0 not in dims or str(source.shape[0]) == "1")


def _reduced(node: fx.Node) -> tuple[torch.Tensor | None, set[int]]:
    """What a reduction reads, and its dimensions if it states them; a whole tensor has none."""
    source, place = node.args[0], 2 if op_name(node) in _LENGTHS else 1
    dims = node.args[place] if len(node.args) > place else None
    if not isinstance(source, fx.Node) or not isinstance(dims, (list, tuple)):
        return None, set()
    val = source.meta["val"]
    return val, {dim % val.dim() for dim in dims if isinstance(dim, int)}


def _divides(number: fx.Node) -> bool:
    """Whether something is divided by a row's number."""
    rows = _rows(number)

    def further(value: fx.Node) -> list[fx.Node]:
        return [user for user in value.users if op_name(user) == "expand" or (_scales(user) and _rows(user) == rows)]

    return any(_is_divided(user, value) for value in follow([number], further) for user in value.users)


def _is_divided(node: fx.Node, value: fx.Node) -> bool:
    """Whether `node` divides by `value`, or makes a factor of it that does."""
    name = op_name(node)
    root = name == "pow" and isinstance(node.args[1], (int, float)) and node.args[1] < 0
    return root or name in ("rsqrt", "reciprocal") or (name == "div" and node.args[1] is value)


def _scales(node: fx.Node) -> bool:
    return op_name(node) in _SCALARS or op_name(node) == "div" or is_view(node)


def _rows(node: fx.Node) -> str:
    """The shape without the last dimension, if that holds a number per row."""
    val = node.meta.get("val")
    shape = [*map(str, getattr(val, "shape", ()))]
    return str([size for size in shape if size != "1"])
