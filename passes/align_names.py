"""Give both sides of a partitioned pair the same names for what is saved.

PyTorch's partitioner keeps names equal, but for the random states of checkpointed regions: the forward returns
`getitem_2`, the backward calls it `rng_state_output_0`. `align_names` renames such forward nodes; values and order
stay.
"""

import torch
from torch import fx

from fxcompress.passes.find_saved import handed_over, placeholders


def align_names(fw: fx.GraphModule, bw: fx.GraphModule, num_fwd_outputs: int) -> tuple[str, ...]:
    """Rename saved forward nodes after their backward placeholders; returns the new names.

    Nothing is renamed where the unnamed ones of both sides do not agree in number, size and dtype.
    """
    incoming = {node.name: node for node in placeholders(bw)}
    saved = handed_over(fw, num_fwd_outputs)
    names = {out.name for out in saved}
    left = [out for out in saved if out.name not in incoming]
    right = [node for name, node in incoming.items() if name not in names and name.startswith("rng_state")]
    if len(left) != len(right) or not all(_alike(a, b) for a, b in zip(left, right, strict=True)):
        return ()
    for node, partner in zip(left, right, strict=True):
        node._rename(partner.name)
    return tuple(node.name for node in left)


def _alike(a: fx.Node, b: fx.Node) -> bool:
    x, y = a.meta.get("val"), b.meta.get("val")
    return isinstance(x, torch.Tensor) and isinstance(y, torch.Tensor) and (x.dtype, x.shape) == (y.dtype, y.shape)
