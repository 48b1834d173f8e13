"""What Inductor makes of a partitioned graph, up to the text of its code: nothing is compiled or run.

Names of `torch._inductor.compile_fx`, `.debug`, `.fx_passes.post_grad`, `.graph`, `.ir`, `.virtualized`: run in 2.11
and 2.13.
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from fxcompress.compat.scalar_kernels import write_scalar_kernels


@dataclass(frozen=True, slots=True)
class Lowered:
    """A graph after scheduling and code generation.

    Attributes:
        graph: Inductor's `GraphLowering`; its scheduler's nodes are the kernels.
        source: the wrapper code, with every kernel in it.
        outputs: the buffer behind each output; empty for what is no tensor.
        strides: of each output, as Inductor chose them; None for what is no tensor, or has symbolic ones.
        result_nbytes: of every buffer; 0 for those of symbolic size.
        workspace_nbytes: what calls of libraries need while they run, by the buffer that they return.
    """

    graph: Any
    source: str
    outputs: tuple[str, ...]
    strides: tuple[tuple[int, ...] | None, ...]
    result_nbytes: Mapping[str, int]
    workspace_nbytes: Mapping[str, int]


def lower(
    gm: fx.GraphModule,
    inputs: Sequence[torch.Tensor],
    patches: Mapping[str, Any],
    *,
    is_backward: bool,
    user_outputs: Sequence[int] = (),
    donated: Sequence[int] = (),
    workspace: Callable[[fx.Node], int] | None = None,
    move: Callable[[fx.GraphModule], object] | None = None,
    scalar: bool = False,
) -> Lowered:
    """Do to `gm` what `compile_fx` does; edits it.

    Args:
        gm: a forward or backward graph.
        inputs: fake tensors with the strides that the graph will be given.
        patches: of Inductor's config.
        is_backward: which of the two it is.
        user_outputs: positions of the outputs whose strides the user sees.
        donated: positions of the inputs that the graph may write over.
        workspace: bytes that the kernel of a node needs besides its results, none if not stated; its arguments have
            the strides that Inductor chose.
        move: edits the graph once its values are known, to lie on another device than the inputs.
        scalar: on a CPU, write kernels in a form that takes less time; `source` differs within them alone.
    """
    from torch._inductor import compile_fx, config
    from torch._inductor.debug import DebugContext
    from torch._inductor.fx_passes.post_grad import view_to_reshape
    from torch._inductor.graph import GraphLowering
    from torch._inductor.virtualized import V

    (end,) = gm.graph.find_nodes(op="output")
    end.meta["user_visible_output_idxs"] = [i for i in user_outputs if isinstance(end.args[0][i], fx.Node)]
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(config.patch(dict(patches)))
        view_to_reshape(gm)  # type: ignore[no-untyped-call]
        mode = compile_fx.fake_tensor_prop(gm, list(inputs), True)
        if move is not None:
            move(gm)
            inputs = [node.meta["val"] for node in gm.graph.find_nodes(op="placeholder")]
        compile_fx._recursive_record_original_output_strides(gm)
        stack.enter_context(V.set_fake_mode(mode))
        stack.enter_context(V.set_debug_handler(DebugContext()))
        compile_fx._recursive_post_grad_passes(gm, is_inference=False)
        how: dict[str, Any] = {"is_backward": is_backward, "is_inference": False, "shape_env": mode.shape_env}
        graph = GraphLowering(gm, example_inputs=inputs, **how)
        # Known to a compilation only once both graphs are.
        graph.bw_donated_idxs = list(donated)
        stack.enter_context(V.set_graph_handler(graph))
        stack.enter_context(V.set_extern_kernel_nodes([]))
        graph.run(*inputs)
        strides = tuple(_strides(out) for out in graph.graph_outputs)
        if scalar:
            write_scalar_kernels(graph)
        code, _ = graph.codegen()
        outputs = tuple(out.get_name() if _is_tensor(out) else "" for out in graph.graph_outputs)
        results = _result_nbytes(graph)
        needs = {} if workspace is None else _workspaces(graph, workspace)
    return Lowered(graph, code.value, outputs, strides, results, needs)


def _workspaces(graph: Any, workspace: Callable[[fx.Node], int]) -> dict[str, int]:
    calls = {buffer.get_name(): call_of(buffer) for buffer in graph.buffers}
    needs = {
        name: workspace(_as_lowered(node, graph.name_to_buffer[name]))
        for name, node in calls.items()
        if node is not None
    }
    return {name: nbytes for name, nbytes in needs.items() if nbytes}


def _result_nbytes(graph: Any) -> dict[str, int]:
    """Bytes of every buffer of a lowered graph; 0 for several results, which are counted where they are picked, and for
    views that a library returns."""
    buffers = graph.name_to_buffer.items()
    return {name: 0 if buffer.get_inputs_that_alias_output() else _nbytes(buffer) for name, buffer in buffers}


def call_of(buffer: Any) -> fx.Node | None:
    """The node whose library kernel returns a buffer."""
    overload = getattr(buffer, "op_overload", None)
    node: fx.Node | None = buffer.get_origin_node()
    return node or next((origin for origin in buffer.get_origins() if origin.target is overload), None)


def _as_lowered(node: fx.Node, buffer: Any) -> fx.Node:
    """The node, the values of its arguments laid out as what the kernel is given."""
    for source, given in zip(node.all_input_nodes, getattr(buffer, "inputs", ()), strict=False):
        val, layout = source.meta.get("val"), getattr(given, "layout", None)
        size, stride = getattr(layout, "size", ()), getattr(layout, "stride", ())
        if isinstance(val, torch.Tensor) and val.dim() == 4 and [int(n) for n in size] == list(val.shape):
            source.meta["val"] = val.as_strided(val.shape, [int(n) for n in stride])
    return node


def _is_tensor(output: Any) -> bool:
    from torch._inductor import ir

    return isinstance(output, ir.IRNode) and output.has_tensor_output()


def _strides(output: Any) -> tuple[int, ...] | None:
    """None for what is no tensor, or has symbolic strides."""
    strides = output.get_layout().stride if _is_tensor(output) else (None,)
    return tuple(map(int, strides)) if all(map(_is_number, strides)) else None


def _is_number(size: Any) -> bool:
    return size is not None and not getattr(size, "free_symbols", ())


def _nbytes(buffer: Any) -> int:
    from torch._inductor import ir

    layout = buffer.get_output_spec()
    # What is written into another buffer takes no memory, and has that one's strides.
    if not hasattr(layout, "dtype") or isinstance(layout, ir.MutationLayoutSHOULDREMOVE):
        return 0
    if not all(map(_is_number, (*layout.size, *layout.stride))):
        return 0
    sizes, strides = [int(size) for size in layout.size], [int(stride) for stride in layout.stride]
    last = -1 if 0 in sizes else sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
    return (last + 1) * int(layout.dtype.itemsize)
