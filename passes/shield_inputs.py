"""Keep Inductor from holding channels-last copies of what the caller holds anyway.

Where Inductor lays convolutions out with channels last, it converts a weight or an input image as soon as it enters the
graph, and every reader gets the copy: the forward's list of saved tensors included, so that all of them are held twice
until the backward has read them. `shield_inputs` lets each convolution read such a tensor through a view of its own,
made right before it: the tensor itself is saved, which costs nothing, and converted for as long as one convolution
needs it. Exact. Only for tensors of the caller: those have the strides that the graph states.
"""

import torch
from torch import fx

from fxcompress.passes.find_saved import placeholders
from fxcompress.passes.ops import op_name

_OPERANDS = {"convolution": (0, 1), "convolution_backward": (1, 2)}


def shield_inputs(fw: fx.GraphModule, bw: fx.GraphModule) -> tuple[str, ...]:
    """Put a view between each input of the forward and each convolution that reads it, in both graphs.

    Returns the names of the inputs, once per convolution.
    """
    names = {node.name for node in placeholders(fw)}
    shielded = []
    for gm in (fw, bw):
        for node in [node for node in placeholders(gm) if node.name in names and _is_static(node.meta.get("val"))]:
            for user in [user for user in node.users if _convolves(user, node)]:
                _read_through_view(gm, node, user)
                shielded.append(node.name)
    return tuple(shielded)


def _read_through_view(gm: fx.GraphModule, node: fx.Node, user: fx.Node) -> None:
    val = node.meta["val"]
    with gm.graph.inserting_before(user):
        # Inductor removes every spelling of "the same view" but this one.
        view = gm.graph.call_function(torch.ops.aten.as_strided.default, (node, list(val.shape), list(val.stride())))
    view.meta = {**user.meta, "val": val.as_strided(val.shape, val.stride())}
    user.replace_input_with(node, view)


def _convolves(user: fx.Node, node: fx.Node) -> bool:
    return any(user.args[position] is node for position in _OPERANDS.get(op_name(user), ()))


def _is_static(val: object) -> bool:
    return isinstance(val, torch.Tensor) and all(isinstance(size, int) for size in (*val.shape, *val.stride()))
