"""Join views of views: Inductor takes the indices of a loop from the last one alone, and simple ones vectorize."""

import torch
from torch import fx

_VIEWS = (torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default, torch.ops.aten.reshape.default)


def join_views(gm: fx.GraphModule) -> int:
    """Let every view of a view read what that views; returns how many do. Exact; the graph is edited in place."""
    count = 0
    for node in gm.graph.nodes:
        source = node.args[0] if node.target in _VIEWS else None
        while isinstance(source, fx.Node) and source.target in _VIEWS:
            source = source.args[0]
        if isinstance(source, fx.Node) and source is not node.args[0]:
            node.update_arg(0, source)
            count += 1
    gm.graph.eliminate_dead_code()
    return count
