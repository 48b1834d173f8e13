"""Let Inductor write to memory, once, what rows are gathered from, where it is computed from a decoded value.

Inductor computes a pointwise expression wherever it is read. A gather reads each row as often as it is asked for it: on
a graph with ten edges per node, the backward of a layer with a ReLU in front unpacks its mask ten times. Exact.
"""

from torch import fx

from fxcompress import compat
from fxcompress.passes.alias import numel_of
from fxcompress.passes.find_codec_nodes import find_codec_nodes
from fxcompress.passes.ops import base_of, is_view, op_name
from fxcompress.passes.traits import traits_of

_GATHERS = frozenset("index _unsafe_index _unsafe_masked_index index_select gather embedding".split())
_TIMES = 2
"""So many reads of each element, on average, are dearer than one more pass over memory."""


def store_gathered(bw: fx.GraphModule) -> tuple[str, ...]:
    """Mark those values; returns their names.

    Args:
        bw: a rewritten backward.
    """
    decoded = set(filter(_generated, find_codec_nodes(bw.graph)))
    found = []
    for node in bw.graph.nodes:
        if _generated(node) and any(arg in decoded for arg in node.all_input_nodes):
            decoded.add(node)
        if node.op != "call_function" or op_name(node) not in _GATHERS:
            continue
        source = base_of(node.all_input_nodes[0])
        if source in decoded and _generated(source) and numel_of(node) >= _TIMES * numel_of(source):
            compat.store_in_memory(source)
            decoded.remove(source)
            found.append(source.name)
    return tuple(found)


def _generated(node: fx.Node) -> bool:
    """Whether Inductor may compute it where it is read; views are, of what they view."""
    return is_view(node) or traits_of(node).pointwise
