"""What a matrix product or convolution adds up: whether plain products, and how many per element. Read-only."""

import math
from collections.abc import Sequence

import torch
from torch import fx

from fxcompress import compat
from fxcompress.passes.ops import op_name


def sums_products(node: fx.Node) -> bool:
    """Whether a convolution adds products as they are, at least one of them not of padding.

    cuDNN and NNPACK may choose a transform algorithm (Winograd, FFT), whose results are not whole numbers.
    """
    x, weight, bias, *arguments = node.args
    padding, dilation = _padding(node), arguments[2]
    assert isinstance(x, fx.Node) and isinstance(weight, fx.Node) and bias is None
    assert isinstance(dilation, (list, tuple))
    image, kernel = x.meta["val"], weight.meta["val"]
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel.shape[2:], strict=True)]
    if image.device.type != "cpu" or not all(p < r for p, r in zip(padding, reach, strict=True)):
        return False
    if math.prod(kernel.shape[2:]) == 1 or kernel.dtype is torch.float64:
        return True
    static = all(isinstance(size, int) for size in (*image.shape, *kernel.shape))
    return static and compat.convolution_sums_products(image, kernel, None, arguments)


def contracted(node: fx.Node, offset: int) -> int | None:
    """How many products one output element sums; None if unknown or if an unanalysed bias is added."""
    right = node.args[offset + 1]
    assert isinstance(right, fx.Node)
    shape = right.meta["val"].shape
    if op_name(node) == "convolution":
        plain = node.args[2] is None and not node.args[6]
        sizes = shape[1:]
    else:
        plain = offset == 0
        sizes = shape[-2:-1]
    return math.prod(sizes) if plain and all(isinstance(s, int) for s in sizes) else None


def together(node: fx.Node, terms: int) -> int:
    """How many of the `terms` products of one output element padding can only leave out together."""
    if op_name(node) != "convolution" or not any(_padding(node)):
        return terms
    kernel = node.args[1]
    assert isinstance(kernel, fx.Node)
    channels: int = kernel.meta["val"].shape[1]
    return channels


def _padding(node: fx.Node) -> Sequence[int]:
    padding = node.args[4]
    assert isinstance(padding, (list, tuple))
    return padding  # type: ignore[return-value]
