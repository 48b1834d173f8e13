"""Let Inductor write a tensor that is encoded to memory once, where it would otherwise compute it again.

Without us a saved tensor is an output of the forward, and what reads it later reads that. Saved encoded, it is an
output no more. Inductor then computes a residual stream anew from all its terms wherever it is read, and gives a Triton
kernel of ours a copy (`to_rows` is a view, and of what is in no buffer only a copy can be taken). `store_encoded` marks
such tensors. Exact. For GPUs: on a CPU encodes are operators (decision 5), which store what they read.
"""

from collections.abc import Sequence

from torch import fx

from fxcompress import compat
from fxcompress.codecs import lowering
from fxcompress.codecs.order import memory_order
from fxcompress.passes.choose import Encoding
from fxcompress.passes.traits import is_opaque, is_read_behind_a_call
from fxcompress.plan import TRITON


def store_encoded(fw: fx.GraphModule, encodings: Sequence[Encoding]) -> tuple[str, ...]:
    """Mark the tensors that a kernel of ours reads, and those that are read again after a library's kernel.

    Args:
        fw: the forward, before it is rewritten.
        encodings: what will be encoded; a tensor that Inductor lays out in another order than the graph is left alone.

    Returns:
        The names of the marked tensors.
    """
    order = {node: i for i, node in enumerate(fw.graph.nodes)}
    calls = [order[node] for node in fw.graph.nodes if node.op == "call_function" and is_opaque(node)]
    marked = []
    for encoding in encodings:
        source = encoding.source
        val = source.meta["val"]
        if not lowering.wanted(val) or source.op != "call_function" or encoding.order != memory_order(val):
            continue
        if encoding.lowering == TRITON or is_read_behind_a_call(source, order, calls):
            compat.store_in_memory(source)
            marked.append(source.name)
    return tuple(marked)
