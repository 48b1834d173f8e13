"""Let a decode cast its values when they have the tensor's sizes, not before.

Inductor stores what is computed last, and views that. A decode ends in groups that are viewed as the tensor: cast as
groups and stored as groups, they have no view as attention's heads, which get a copy. Exact: a cast and a view commute.
"""

from torch import fx

from fxcompress.passes.ops import is_view, op_name
from fxcompress.passes.splice import refresh_values


def cast_last(decode: fx.GraphModule) -> bool:
    """Move the cast at the end of a traced decode behind the views that follow it, but for the last permutation.

    Returns whether there was one to move; the graph is edited in place.
    """
    (output,) = decode.graph.find_nodes(op="output")
    (last,) = output.args[0]
    while op_name(last) == "permute":
        last = last.args[0]
    cast = last
    while is_view(cast) and len(cast.users) == 1:
        cast = cast.args[0]
    if cast is last or op_name(cast) not in ("convert_element_type", "_to_copy") or len(cast.users) != 1:
        return False
    (first,) = cast.users
    with decode.graph.inserting_after(last):
        moved = decode.graph.call_function(cast.target, (last, *cast.args[1:]), cast.kwargs)
    moved.meta = dict(cast.meta)
    last.replace_all_uses_with(moved, delete_user_cb=lambda user: user is not moved)
    cast.replace_all_uses_with(cast.args[0])
    decode.graph.erase_node(cast)
    behind = list(decode.graph.nodes)
    refresh_values(node for node in behind[behind.index(first) :] if node.op == "call_function")
    decode.recompile()
    return True
