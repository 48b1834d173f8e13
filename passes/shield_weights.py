"""Keep Inductor from holding channels-last copies of convolution weights.

Where Inductor lays convolutions out with channels last, it converts a weight as soon as it enters the graph, and
every reader gets the copy: the forward's list of saved tensors included, so that all weights are held twice until the
backward has read them. `shield_weights` lets each convolution read its weight through a view of its own, made right
before it: the parameter itself is saved, which costs nothing, and converted for as long as one convolution needs it.
Exact.
"""

import torch
from torch import fx

from fxcompress.passes.ops import op_name

_WEIGHT_ARGUMENT = {"convolution": 1, "convolution_backward": 2}


def shield_weights(gm: fx.GraphModule) -> tuple[str, ...]:
    """Put a view between each weight and each of its convolutions, in either graph; returns the weights' names."""
    shielded = []
    for weight in gm.graph.find_nodes(op="placeholder"):
        val = weight.meta.get("val")
        if not isinstance(val, torch.Tensor) or not _is_static(val):
            continue
        for user in [user for user in weight.users if _reads_as_weight(user, weight)]:
            with gm.graph.inserting_before(user):
                # Inductor removes every spelling of "the same view" but this one.
                view = gm.graph.call_function(
                    torch.ops.aten.as_strided.default, (weight, list(val.shape), list(val.stride()))
                )
            view.meta = {**user.meta, "val": val.as_strided(val.shape, val.stride())}
            user.replace_input_with(weight, view)
            shielded.append(weight.name)
    return tuple(shielded)


def _reads_as_weight(user: fx.Node, weight: fx.Node) -> bool:
    position = _WEIGHT_ARGUMENT.get(op_name(user))
    return position is not None and user.args[position] is weight


def _is_static(val: torch.Tensor) -> bool:
    return all(isinstance(size, int) for size in (*val.shape, *val.stride()))
