"""Find the nodes that `rewrite` put into a graph: encodes, decodes and what belongs to them. Read-only."""

import operator

from torch import fx

from fxcompress import compat
from fxcompress.passes.splice import PREFIX
from fxcompress.passes.write_chunk import PREFIX as CHUNK


def find_codec_nodes(graph: fx.Graph) -> set[fx.Node]:
    """The codec nodes of a forward or backward graph, calls of outlined codecs included; placeholders left out."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "call_function" and (_is_ours(node.name) or _calls_codec(node) or _is_part(node, found)):
            found.add(node)
    subgraphs = graph.find_nodes(op="get_attr")
    return found | {node for node in subgraphs if node.users and all(user in found for user in node.users)}


def _is_ours(name: str) -> bool:
    return name.startswith(PREFIX) and not name.startswith(CHUNK)


def _calls_codec(node: fx.Node) -> bool:
    return node.target is compat.invoke_subgraph() and isinstance(node.args[1], str) and _is_ours(node.args[1])


def _is_part(node: fx.Node, found: set[fx.Node]) -> bool:
    """An element of what an outlined codec returns, whatever its name."""
    return node.target is operator.getitem and node.args[0] in found
