"""Find how many elements of a tensor belong to one image, where a normalization of images stands behind it.

Group, instance and layer normalizations give images of any size the same one, and the gradient of a blank image, or
of a dark one, is divided by next to nothing. Whatever the backward computes with that, such as the operand of the
convolution in front, has no such error only if the image shares no scale with a brighter one. So codes begin anew with
each image, as they do with the rows of a product (`row_groups`). Read-only.
"""

import math
from collections.abc import Callable, Iterator

import torch
from torch import fx

from fxcompress.codecs.order import MemoryOrder, permutation
from fxcompress.passes.find_row_norms import normalizes_images, normalizes_rows
from fxcompress.passes.follow import follow
from fxcompress.passes.ops import MOVES, is_pointwise, is_view, op_name

_RANK = 3
"""Dimensions of a batch of maps or sequences with channels, at least."""
_MIXES = frozenset(["var_mean", "var"])
_AFFINE = frozenset("mul div add sub addcmul convert_element_type _to_copy".split())


def image_width(source: fx.Node, order: MemoryOrder) -> int:
    """Elements of each image in `source`; 0 where that is none, or of symbolic size, or no normalization is behind it.

    Args:
        source: what is to be stored, a forward node.
        order: how it lies in memory.
    """
    if order.lead or order.filled is not None or not order.dims or order.dims[0] != 0:
        return 0
    starts = _whence(source)
    images = min(filter(None, map(_images, _same_values(starts))), default=0)
    if not images or order.cols % images:
        return 0
    return order.cols // images if _is_normalized(starts, images) else 0


def _images(node: fx.Node) -> int:
    """How many images a batch holds; 0 if that is no static number, or one: instances are viewed as channels of one."""
    val = node.meta.get("val")
    if not isinstance(val, torch.Tensor) or val.dim() < _RANK or permutation(val.shape, val.stride())[0] != 0:
        return 0
    size = val.shape[0]
    return size if isinstance(size, int) and size > 1 else 0


def _whence(source: fx.Node) -> list[fx.Node]:
    """`source`, and what it is a view, or the scaled and shifted elements of, as what was normalized is."""
    path = [source]
    while is_view(path[-1]) or op_name(path[-1]) in _AFFINE:
        same = [node for node in path[-1].all_input_nodes if _elements(node) == _elements(source)]
        if len(same) != 1:
            break
        path += same
    return path


def _same_values(starts: list[fx.Node]) -> Iterator[fx.Node]:
    """`starts` and what their elements are viewed as, or made into one by one."""

    def further(node: fx.Node) -> list[fx.Node]:
        return [user for user in node.users if _elements(user) == _elements(starts[0])]

    return follow(starts, further)


def _elements(node: fx.Node) -> int:
    val = node.meta.get("val")
    sizes = val.shape if isinstance(val, torch.Tensor) else ()
    return math.prod(sizes) if all(isinstance(size, int) for size in sizes) else 0


def _is_normalized(starts: list[fx.Node], images: int) -> bool:
    """Whether a normalization reads the images, or one of images or rows is behind a product with them."""
    near = list(follow(starts, lambda value: _further(value, images)))

    def behind(products: Callable[[fx.Node], list[fx.Node]]) -> Iterator[fx.Node]:
        first = [product for value in near for product in products(value)]
        return follow(first, lambda value: [*_further(value, images), *products(value)])

    # What rows of tokens are, their own products decide (`row_groups`).
    whole = behind(lambda value: [node for node in _products(value) if _is_of_images(node, images)])
    return (
        any(map(_feeds_image_norm, near))
        or any(map(_feeds_image_norm, behind(_products)))
        or any(normalizes_rows(user) for value in whole for user in value.users)
    )


def _feeds_image_norm(value: fx.Node) -> bool:
    return any(map(normalizes_images, value.users))


def _further(value: fx.Node, images: int) -> list[fx.Node]:
    """What is made of each image in `value` by itself, but for products."""
    if any(map(_mixes_images, value.users)):
        return []
    return [user for user in value.users if _keeps_images(user, value, images)]


def _products(value: fx.Node) -> list[fx.Node]:
    """What is computed from `value` by convolutions and products, image by image."""
    places = {"convolution": 0, "mm": 0, "bmm": 0, "addmm": 1}
    return [user for user in value.users if op_name(user) in places and user.args[places[op_name(user)]] is value]


def _is_of_images(product: fx.Node, images: int) -> bool:
    """Whether its rows are whole images, or it is a convolution."""
    return op_name(product) == "convolution" or str(product.meta["val"].shape[0]) == str(images)


def _keeps_images(node: fx.Node, value: fx.Node, images: int) -> bool:
    name, val = op_name(node), node.meta.get("val")
    if is_view(node) or name in MOVES or "norm" in name:
        return True
    if not isinstance(val, torch.Tensor) or val.dim() == 0:
        return False
    if is_pointwise(node) and _elements(node) == _elements(value):
        return True
    reduces = any(part in name for part in ("pool", "upsample", "mean", "sum", "pad"))
    return str(val.shape[0]) == str(images) and (is_pointwise(node) or reduces)


def _mixes_images(node: fx.Node) -> bool:
    """Whether a normalization reads all images at once: none stays blank behind it."""
    source = node.args[0] if node.args else None
    val = source.meta.get("val") if isinstance(source, fx.Node) else None
    if not isinstance(val, torch.Tensor) or val.dim() < 2 or str(val.shape[0]) == "1":
        return False
    dims = node.args[1] if op_name(node) in _MIXES and len(node.args) > 1 else ()
    return "batch_norm" in op_name(node) or (isinstance(dims, (list, tuple)) and 0 in dims)
