"""PyTorch's merging of equal nodes, in a graph itself instead of in a copy.

`compile_utils.fx_graph_cse(graph)`, which fills an `fx.Graph()` by `node_copy(node, arg_transform)`: run in 2.11 and
2.13.
"""

import types
from collections.abc import Callable
from unittest.mock import patch

from torch import fx
from torch.fx.graph import CodeGen

from fxcompress.compat.threads import in_this_thread


class _SameGraph:
    """Stands for the copy: what is to be copied stays where it is and reads what stays."""

    def __init__(self) -> None:
        self.kept: set[fx.Node] = set()

    def node_copy(self, node: fx.Node, arg_transform: Callable[[fx.Node], fx.Node]) -> fx.Node:
        """`node` itself."""
        if any(arg_transform(arg) is not arg for arg in node.all_input_nodes):
            node.args = fx.map_arg(node.args, arg_transform)
            node.kwargs = fx.map_arg(node.kwargs, arg_transform)
        self.kept.add(node)
        return node


def merging_in_place(original: Callable[[fx.Graph], fx.Graph]) -> Callable[[fx.Graph], fx.Graph]:
    """`fx_graph_cse`, which returns the graph given, as its copy would be: users in order, a plain signature."""
    from torch._functorch import compile_utils

    def merge(graph: fx.Graph) -> fx.Graph:
        same = _SameGraph()
        with patch.object(compile_utils, "fx", types.SimpleNamespace(Graph=in_this_thread(lambda: same, fx.Graph))):
            original(graph)
        for node in reversed(graph.nodes):
            if node not in same.kept:
                graph.erase_node(node)
        _order_users(graph)
        graph.set_codegen(CodeGen())
        return graph

    return merge


def _order_users(graph: fx.Graph) -> None:
    """Let each node know its users in the graph's order, as the nodes of a copy do."""
    for node in graph.nodes:
        for arg in node.all_input_nodes:
            del arg.users[node]
            arg.users[node] = None
