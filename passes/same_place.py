"""Which values of a graph lie in memory alike, seen through views: what a kernel reads and writes at one index.

Read-only. For tensors of static sizes; anything else lies like nothing.
"""

import operator

import torch
from torch import fx

from fxcompress.codecs.order import memory_order
from fxcompress.passes.alias import storage_key
from fxcompress.passes.expressions import FLOATS
from fxcompress.passes.ops import is_view

LONGEST_PERIOD = 2**19
"""Elements of what repeats."""


def lies_as(value: fx.Node, source: fx.Node) -> bool:
    """Whether two tensors of static sizes are stored in the same order, element for element."""
    one, two = value.meta.get("val"), source.meta["val"]
    if not isinstance(one, torch.Tensor) or not {one.dtype, two.dtype} <= {*FLOATS, torch.bool}:
        return False
    if not all(isinstance(size, int) for size in (*one.shape, *one.stride(), *two.shape)):
        return False
    if one.is_contiguous() and two.is_contiguous():
        return bool(one.numel() == two.numel())
    return bool(one.shape == two.shape and one.stride() == two.stride() and memory_order(one) is not None)


def is_in_place(argument: fx.Node, node: fx.Node) -> bool:
    """Whether an argument of the size of `node` has its value's elements in their order: if it is no view, or one of
    the whole that is contiguous too."""
    value, one = value_of(argument), argument.meta.get("val")
    if not isinstance(one, torch.Tensor) or one.shape != node.meta["val"].shape:
        return False
    if one.dtype not in (*FLOATS, torch.bool):
        return False
    if argument is value:
        return True
    two = value.meta.get("val")
    if not isinstance(two, torch.Tensor) or storage_key(argument) != storage_key(value) or one.dtype != two.dtype:
        return False
    whole = one.numel() == two.numel() and one.storage_offset() == two.storage_offset()
    return bool(whole and one.is_contiguous() and two.is_contiguous())


def repeats(argument: fx.Node, node: fx.Node) -> bool:
    """Whether a shorter dense tensor is all that lies along the fastest dimensions of `node`, and is the same for all
    others: channels of a map with channels last, columns of rows.

    In eights, so that eight neighbours are neighbours in both, and few enough to count in 31 bits.
    """
    value, one, two = value_of(argument), argument.meta.get("val"), node.meta.get("val")
    if not isinstance(one, torch.Tensor) or not isinstance(two, torch.Tensor) or one.dtype not in FLOATS:
        return False
    if one.shape == two.shape:
        return False
    whole, order = value.meta.get("val"), memory_order(two)
    if not isinstance(whole, torch.Tensor) or whole.dtype != one.dtype or memory_order(whole) is None or order is None:
        return False
    if storage_key(argument) != storage_key(value) or whole.numel() != one.numel() or one.dim() > two.dim():
        return False
    missing, period, outside = two.dim() - one.dim(), 1, False
    for dim in reversed(order.dims):
        if two.shape[dim] == 1:
            continue
        same = dim < missing or one.shape[dim - missing] == 1
        outside = outside or same
        if outside != same or (not same and one.stride(dim - missing) != period):
            return False
        period *= 1 if outside else two.shape[dim]
    return outside and period == one.numel() and period % 8 == 0 and period <= LONGEST_PERIOD


def value_of(node: fx.Node) -> fx.Node:
    """What a view shows. A result of a library that has several is a value of its own."""
    while is_view(node) and not (node.target is operator.getitem and not is_view(node.all_input_nodes[0])):
        node = node.all_input_nodes[0]
    return node


def readers_of(value: fx.Node) -> list[fx.Node]:
    """The calls that read a value, through views of it too."""
    readers: list[fx.Node] = []
    waiting = [*reversed(value.users)]
    while waiting:
        user = waiting.pop()
        if is_view(user):
            waiting += reversed(user.users)
        elif user.op != "output":
            readers.append(user)
    return readers
