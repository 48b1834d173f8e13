"""Keep Inductor from holding channels-last copies of what the caller holds anyway.

Where Inductor lays convolutions out with channels last, it converts a weight or an input image as soon as it enters the
graph, and every reader gets the copy: the forward's list of saved tensors included, so that all of them are held twice
until the backward has read them. That is so as well where a convolution reads a function of such a tensor: under
autocast its cast, of which the copy has twice the bits. `shield_inputs` lets each reader that leads to a convolution
read through a view of its own, made right before it: the tensor itself is saved, which costs nothing, and converted
for as long as one convolution needs it. Exact. Only for tensors of the caller: those have the strides that the graph
states.
"""

import torch
from torch import fx

from fxcompress.passes.alias import is_static
from fxcompress.passes.find_saved import placeholders
from fxcompress.passes.ops import op_name
from fxcompress.passes.splice import same_view

_OPERANDS = {"convolution": (0, 1), "convolution_backward": (1, 2)}


def shield_inputs(fw: fx.GraphModule, bw: fx.GraphModule) -> tuple[str, ...]:
    """Put a view between each input of the forward and each reader that leads to a convolution, in both graphs.

    Returns the names of the inputs, once per reader.
    """
    names = {node.name for node in placeholders(fw)}
    shielded = []
    for gm in (fw, bw):
        operands = _convolved(gm)
        for node in [node for node in placeholders(gm) if node.name in names and _is_static_map(node.meta.get("val"))]:
            for user in [user for user in node.users if user in operands or _convolves(user, node)]:
                if user.target is not torch.ops.aten.as_strided.default:
                    _read_through_view(gm, node, user)
                    shielded.append(node.name)
    return tuple(shielded)


def _convolved(gm: fx.GraphModule) -> set[fx.Node]:
    """Calls that some convolution reads an image or a weight from, other convolutions and what leads to those apart."""
    found: set[fx.Node] = set()
    for node in reversed(gm.graph.nodes):
        if op_name(node) in _OPERANDS:
            continue
        if any(_convolves(user, node) or user in found for user in node.users):
            found.add(node)
    return found


def _read_through_view(gm: fx.GraphModule, node: fx.Node, user: fx.Node) -> None:
    with gm.graph.inserting_before(user):
        view = same_view(gm.graph, node, user)
    user.replace_input_with(node, view)


def _convolves(user: fx.Node, node: fx.Node) -> bool:
    return any(user.args[position] is node for position in _OPERANDS.get(op_name(user), ()))


def _is_static_map(val: object) -> bool:
    """Inductor converts tensors of four dimensions."""
    if not isinstance(val, torch.Tensor) or val.dim() != 4:
        return False
    return is_static(val)
