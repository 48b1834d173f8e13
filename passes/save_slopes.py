"""Save the slope of a tanh or sigmoid instead of its result, where the backward reads that for nothing else.

The slope, 1 - t² or s (1 - s), is a small difference where the result is near its bound, as most pixels of a trained
generator are: taken of a lossy result, it is mostly error. Its own code's error is a share of the largest slope. Where
the result is an operand, too, it stays. Exact but for rounding: it moves a computation.
"""

from collections.abc import Iterator, Set

import torch
from torch import fx

from fxcompress.passes.alias import find_storages
from fxcompress.passes.demand import gradient_nodes
from fxcompress.passes.find_saved import find_saved
from fxcompress.passes.follow import follow
from fxcompress.passes.logarithms import unmoved
from fxcompress.passes.ops import op_name
from fxcompress.passes.splice import drop_unused, refresh_values
from fxcompress.passes.twins import find_twins, read_saved, twin_of

_CAST = torch.ops.prims.convert_element_type.default
_SATURATING = frozenset(["tanh", "sigmoid"])
_SLOPES = {
    "tanh_backward": torch.ops.aten.tanh_backward.default,
    "sigmoid_backward": torch.ops.aten.sigmoid_backward.default,
}


def save_slopes(fw: fx.GraphModule, bw: fx.GraphModule, lossy: Set[str], num_fwd_outputs: int) -> bool:
    """Save slopes in place of results, one for one.

    Args:
        fw, bw: the pair, edited in place.
        lossy: names of saved values that may become lossy.
        num_fwd_outputs: how many forward outputs are the user's.

    Returns:
        Whether a graph was edited.
    """
    pairs = find_saved(fw, bw, num_fwd_outputs=num_fwd_outputs)
    results = [p for p in pairs if p.bw.name in lossy and op_name(unmoved(p.fw)) in _SATURATING]
    storages = find_storages(fw, pairs, num_fwd_outputs) if results else []
    alone = {storage.members[0].bw for storage in storages if len(storage.members) == 1 and not storage.held_by}
    gradients = gradient_nodes(bw, {pair.bw for pair in pairs})
    slopes = [node for pair in results if pair.bw in alone for node in _slopes(bw, pair.bw, gradients)]
    if not slopes:
        return False
    twins = find_twins(fw, bw, pairs, num_fwd_outputs)
    for node in slopes:
        twin = twin_of(twins, node)
        if twin is not None:
            read_saved(twins, node, twin, f"slope_{node.name}")
    drop_unused(fw, bw, find_saved(fw, bw, num_fwd_outputs=num_fwd_outputs))
    return True


def _slopes(bw: fx.GraphModule, result: fx.Node, gradients: Set[fx.Node]) -> Iterator[fx.Node]:
    """The one value through which alone gradients meet `result`, if there is one and it is no move of it."""
    made = set(follow([result], lambda value: [user for user in value.users if not _meets(user, gradients)]))
    met = [(value, user) for value in made for user in value.users if _meets(user, gradients)]
    read = {value for value, _ in met}
    if len(read) != 1 or not all(made.issuperset(value.all_input_nodes) for value in made - {result}):
        return
    value, user = met[0]
    if unmoved(value) is not result and value.meta["val"].shape == result.meta["val"].shape:
        yield _narrowed(bw, value, result.meta["val"].dtype)
    elif len(met) == 1 and op_name(user) in _SLOPES and user.args[1] is value:
        yield _exposed(bw, user, value)


def _meets(user: fx.Node, gradients: Set[fx.Node]) -> bool:
    return user in gradients or user.op == "output"


def _narrowed(bw: fx.GraphModule, slope: fx.Node, dtype: torch.dtype) -> fx.Node:
    """`slope` in the dtype of the result, which it takes no more bytes than; readers get it back in their own."""
    wide = slope.meta["val"].dtype
    if wide is dtype:
        return slope
    with bw.graph.inserting_after(slope):
        narrow = bw.graph.call_function(_CAST, (slope, dtype))
    with bw.graph.inserting_after(narrow):
        again = bw.graph.call_function(_CAST, (narrow, wide))
    slope.replace_all_uses_with(again, delete_user_cb=lambda user: user is not narrow)
    narrow.meta["val"] = again.meta["val"] = slope.meta["val"]
    refresh_values([narrow, again])
    return narrow


def _exposed(bw: fx.GraphModule, node: fx.Node, result: fx.Node) -> fx.Node:
    """The slope that a derivative, one operator to an interpreter, multiplies with, as a node of its own."""
    like = result.meta["val"]
    with bw.graph.inserting_before(node):
        options = {"dtype": like.dtype, "device": like.device}
        one = bw.graph.call_function(torch.ops.aten.scalar_tensor.default, (1.0,), options)
        slope = bw.graph.call_function(_SLOPES[op_name(node)], (one, result))
        product = bw.graph.call_function(torch.ops.aten.mul.Tensor, (node.args[0], slope))
    one.meta["val"] = slope.meta["val"] = like
    product.meta["val"] = node.meta["val"]
    refresh_values([one, slope, product])
    node.replace_all_uses_with(product)
    bw.graph.erase_node(node)
    return slope
