"""Let a backward read the normalized value that is saved, and not compute it again of the value that is rebuilt of it.

`(x - mean) * rstd` with `x = normalized / rstd + mean` is four operators, and a rounding to the dtype of x, for
nothing; and where several kernels need it, Inductor would rather store what takes it as long.
"""

from collections.abc import Sequence

import torch
from torch import fx

from fxcompress.passes.find_normalized import keeps_order
from fxcompress.passes.follow import follow
from fxcompress.passes.ops import op_name
from fxcompress.passes.pair_writer import call, cast_to, is_alike
from fxcompress.passes.save_normalized import Replaced

_aten = torch.ops.aten


def shorten_rebuilt(bw: fx.GraphModule, replaced: Sequence[Replaced]) -> int:
    """Do so for values that stay normalized; returns how many readers were changed.

    Args:
        bw: the backward, edited in place.
        replaced: what `save_normalized` did, without what `restore_kept` undid.
    """
    count = sum(_shorten(bw, each) for each in replaced)
    bw.graph.eliminate_dead_code()
    return count


def _shorten(bw: fx.GraphModule, each: Replaced) -> int:
    mean, rstd = each.statistics
    centered = [
        user for node in follow([each.rebuilt], _casts) for user in node.users if _takes(user, "sub", node, mean)
    ]
    count = 0
    for node in centered:
        with bw.graph.inserting_before(node):
            product = call(bw, _aten.mul.Tensor, (each.normalized, each.deviation), node)
        if not _stands_for(product, node):
            continue
        node.replace_all_uses_with(product)
        count += 1
        name = "div" if each.divides else "mul"
        for user in [user for user in product.users if _takes(user, name, product, rstd)]:
            with bw.graph.inserting_before(user):
                same = cast_to(bw, each.normalized, user.meta["val"].dtype)
            if _stands_for(same, user):
                user.replace_all_uses_with(same)
    return count


def _casts(node: fx.Node) -> list[fx.Node]:
    return [user for user in node.users if op_name(user) == "convert_element_type"]


def _takes(user: fx.Node, name: str, node: fx.Node, statistic: fx.Node) -> bool:
    """Whether it computes something of `node` and a statistic, in this order or, of a product, in the other."""
    if op_name(user) != name or len(user.args) != 2 or user.kwargs:
        return False
    pairs = (user.args, user.args[::-1]) if name == "mul" else (user.args,)
    return any(one is node and isinstance(two, fx.Node) and _shown(two) is statistic for one, two in pairs)


def _shown(node: fx.Node) -> fx.Node:
    """What `node` shows, perhaps in another dtype."""
    while keeps_order(node):
        node = node.all_input_nodes[0]
    return node


def _stands_for(one: fx.Node, two: fx.Node) -> bool:
    return is_alike(one, two) and bool(one.meta["val"].dtype == two.meta["val"].dtype)
