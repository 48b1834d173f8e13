"""From a partitioned graph on CPU fake tensors to Inductor's schedule and source for cuda:0.

Run in torch 2.13.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensor

from bench.fake_cuda.device import DEVICE


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
    inner = torch.empty(0, dtype=value.dtype, device="meta")
    inner.set_(value.untyped_storage(), value.storage_offset(), value.size(), value.stride())
    return FakeTensor(value.fake_mode, inner, device)


@dataclass(frozen=True, slots=True)
class Lowered:
    """A graph after scheduling and code generation.

    Attributes:
        graph: Inductor's `GraphLowering`; its scheduler's nodes are the kernels.
        source: the wrapper code with every Triton kernel in it.
        output_strides: of each output tensor, as Inductor chose it; None for what is no tensor.
        output_buffers: names of the buffers behind the outputs; empty for what is no tensor.
    """

    graph: Any
    source: str
    output_strides: tuple[tuple[int, ...] | None, ...]
    output_buffers: tuple[str, ...]


def lower(
    gm: fx.GraphModule,
    *,
    is_backward: bool,
    user_outputs: Sequence[int] = (),
    settings: Mapping[str, Any] = MappingProxyType({}),
) -> Lowered:
    """What `compile_fx` does to a partitioned graph up to the source text; edits `gm`. Only inside `fake_cuda`.

    Args:
        gm: forward or backward graph on cuda:0.
        is_backward: which of the two.
        user_outputs: positions of the outputs whose strides the user sees, which Inductor must keep.
        settings: of Inductor's config.
    """
    from torch._inductor import compile_fx, config
    from torch._inductor.debug import DebugContext
    from torch._inductor.fx_passes.post_grad import view_to_reshape
    from torch._inductor.graph import GraphLowering
    from torch._inductor.virtualized import V

    (output,) = gm.graph.find_nodes(op="output")
    output.meta["user_visible_output_idxs"] = [i for i in user_outputs if isinstance(output.args[0][i], fx.Node)]
    view_to_reshape(gm)  # type: ignore[no-untyped-call]
    # Even fake tensors cannot be indexed on a device that torch was not built for: values propagate on the CPU.
    with torch.no_grad():
        mode = compile_fx.fake_tensor_prop(gm, _inputs(gm), True)
    inputs = _inputs(retarget(gm))
    compile_fx._recursive_record_original_output_strides(gm)
    with config.patch(dict(settings)), V.set_fake_mode(mode), V.set_debug_handler(DebugContext()):
        compile_fx._recursive_post_grad_passes(gm, is_inference=False)
        graph = GraphLowering(gm, example_inputs=inputs, is_backward=is_backward, is_inference=False)
        with V.set_graph_handler(graph), V.set_extern_kernel_nodes([]):
            graph.run(*inputs)
            strides = tuple(_strides(out) for out in graph.graph_outputs)
            buffers = tuple(out.get_name() if _is_tensor(out) else "" for out in graph.graph_outputs)
            code, _ = graph.codegen()
    return Lowered(graph, code.value, strides, buffers)


def _inputs(gm: fx.GraphModule) -> list[Any]:
    return [node.meta["val"] for node in gm.graph.find_nodes(op="placeholder")]


def _is_tensor(output: Any) -> bool:
    from torch._inductor import ir

    return isinstance(output, ir.IRNode) and output.has_tensor_output()


def _strides(output: Any) -> tuple[int, ...] | None:
    if not _is_tensor(output):
        return None
    return tuple(int(stride) for stride in output.get_layout().stride)
