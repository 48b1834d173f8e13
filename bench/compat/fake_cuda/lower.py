"""From a partitioned graph on CPU fake tensors to Inductor's schedule and source for cuda:0."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import fx

from bench.compat.fake_cuda.device import DEVICE
from fxcompress.compat import lowering
from fxcompress.compat.lowering import Lowered
from fxcompress.compat.tracing import FakeTensor, in_storage


def retarget(gm: fx.GraphModule, device: torch.device = DEVICE) -> fx.GraphModule:
    """Move a graph's fake values and device arguments to `device`, in place; equal storages stay equal."""

    def move_value(value: Any) -> Any:
        return on_device(value, device)

    def move_argument(argument: Any) -> Any:
        return device if isinstance(argument, torch.device) and argument.type in ("cpu", "cuda") else argument

    for node in gm.graph.nodes:
        if "val" in node.meta:
            node.meta["val"] = fx.node.map_aggregate(node.meta["val"], move_value)
        node.meta.pop("tensor_meta", None)
        node.args = fx.node.map_aggregate(node.args, move_argument)
        node.kwargs = fx.node.map_aggregate(node.kwargs, move_argument)
    gm.recompile()
    return gm


def on_device(value: Any, device: torch.device) -> Any:
    """A fake tensor's twin on `device`, in the same storage; anything else unchanged."""
    if not isinstance(value, FakeTensor) or value.device == device:
        return value
    return in_storage(value, value.untyped_storage(), device)


def lower(
    gm: fx.GraphModule,
    inputs: Sequence[torch.Tensor] | None = None,
    *,
    is_backward: bool,
    user_outputs: Sequence[int] = (),
    donated: Sequence[int] = (),
    settings: Mapping[str, Any] = MappingProxyType({}),
) -> Lowered:
    """What `compile_fx` does to a partitioned graph up to the source text; edits `gm`. Only inside `fake_cuda`.

    Args:
        gm: forward or backward graph on the CPU.
        inputs: fake tensors with the strides that the graph will be given; None: those of its placeholders.
        is_backward: which of the two.
        user_outputs: positions of the outputs whose strides the user sees, which Inductor must keep.
        donated: positions of the inputs that the graph may write over.
        settings: of Inductor's config.
    """
    given = [node.meta["val"] for node in gm.graph.find_nodes(op="placeholder")] if inputs is None else inputs
    # Even fake tensors cannot be indexed on a device that torch was not built for: values propagate on the CPU.
    return lowering.lower(
        gm, given, settings, is_backward=is_backward, user_outputs=user_outputs, donated=donated, move=retarget
    )
