"""Find the maps that Inductor will lay out with channels last, whatever the graph's strides say.

Inductor decides this after partitioning. A codec that followed the graph's strides would read and write such maps
across memory, and each decode would be copied once more before its convolution. Read-only.
"""

import torch
from torch import fx

from fxcompress import compat
from fxcompress.codecs.order import MemoryOrder, split
from fxcompress.passes.ops import op_name

CHANNELS_LAST = (0, 2, 3, 1)


def find_channels_last(fw: fx.GraphModule) -> set[str]:
    """Shapes (as text) of convolution inputs and outputs, if Inductor will compute them with channels last."""
    convolutions = [node for node in fw.graph.nodes if op_name(node) == "convolution"]
    if not convolutions or not compat.inductor_uses_channels_last(fw):
        return set()
    maps = [node.meta["val"] for conv in convolutions for node in (conv, conv.all_input_nodes[0])]
    return {str(tuple(val.shape)) for val in maps if val.dim() == 4}


def channels_last_order(val: torch.Tensor) -> MemoryOrder:
    """A [N, C, H, W] map in the order N, H, W, C."""
    lead, tail = split([val.shape[dim] for dim in CHANNELS_LAST])
    return MemoryOrder(CHANNELS_LAST, lead, tail)
