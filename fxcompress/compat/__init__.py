"""Every private PyTorch name that fxcompress uses, in one place.

Each function states what it wraps and the versions in which the name and signature were checked: "run" means executed
by the test suite on that version, "read" means its source was compared.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from fxcompress.compat.caches import clear_with_compile_caches as clear_with_compile_caches
from fxcompress.compat.caches import compile_cache_dir as compile_cache_dir
from fxcompress.compat.caches import default_cache_dir as default_cache_dir
from fxcompress.compat.kernels import compile_for_rows as compile_for_rows
from fxcompress.compat.partitioner import Chooser as Chooser
from fxcompress.compat.partitioner import Cutter as Cutter
from fxcompress.compat.partitioner import NodeInfo as NodeInfo
from fxcompress.compat.partitioner import Partition as Partition
from fxcompress.compat.partitioner import RecomputeRules as RecomputeRules
from fxcompress.compat.partitioner import TorchChoice as TorchChoice
from fxcompress.compat.partitioner import choosing_saved_values as choosing_saved_values
from fxcompress.compat.partitioner import partition as partition
from fxcompress.compat.partitioner import recompute_rules as recompute_rules
from fxcompress.compat.partitioner import recomputing_views as recomputing_views
from fxcompress.compat.scene import CompileScene as CompileScene
from fxcompress.compat.scene import compiled_frame as compiled_frame
from fxcompress.compat.shortcuts import graphs_edited_fast as graphs_edited_fast
from fxcompress.compat.tracing import DataDependentOutputException as DataDependentOutputException
from fxcompress.compat.tracing import DynamicOutputShapeException as DynamicOutputShapeException
from fxcompress.compat.tracing import FakeTensorMode as FakeTensorMode
from fxcompress.compat.tracing import HigherOrderOperator as HigherOrderOperator
from fxcompress.compat.tracing import OpOverload as OpOverload
from fxcompress.compat.tracing import convertible_fake_modules as convertible_fake_modules
from fxcompress.compat.tracing import decomposition_of as decomposition_of
from fxcompress.compat.tracing import in_storage as in_storage
from fxcompress.compat.tracing import is_stored as is_stored
from fxcompress.compat.tracing import make_graph_module as make_graph_module
from fxcompress.compat.tracing import move_storages as move_storages
from fxcompress.compat.tracing import static_sizes as static_sizes
from fxcompress.compat.tracing import store_in_memory as store_in_memory
from fxcompress.compat.trees import map_tensors as map_tensors
from fxcompress.compat.trees import tensors_by_path as tensors_by_path
from fxcompress.compat.trees import tensors_in as tensors_in
from fxcompress.compat.triton_calls import triton_node as triton_node
from fxcompress.compat.triton_calls import triton_nodes as triton_nodes


def inductor_decompositions() -> Mapping[Any, Callable[..., Any]]:
    """`torch._inductor.decomposition.select_decomp_table()`: run in 2.13, read in 2.11."""
    import torch._inductor.lowering  # noqa: F401  (max_pool's decomposition needs it imported first)
    from torch._inductor.decomposition import select_decomp_table

    return select_decomp_table()


def trace_definition(node: fx.Node) -> fx.GraphModule:
    """A call's definition in smaller operators, as a graph of its tensor arguments that returns a flat sequence.

    `torch._decomp.get_decompositions`: run in 2.13, read in 2.11.
    """
    from torch._decomp import get_decompositions
    from torch.fx.experimental.proxy_tensor import make_fx

    assert isinstance(node.target, torch._ops.OpOverload)
    definition = get_decompositions([node.target])[node.target]
    places = [i for i, arg in enumerate(node.args) if isinstance(arg, fx.Node)]
    vals = [arg.meta["val"] for arg in node.args if isinstance(arg, fx.Node)]

    def call(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        args = list(node.args)
        for place, tensor in zip(places, tensors, strict=True):
            args[place] = tensor
        result = definition(*args, **node.kwargs)
        return tuple(result) if isinstance(result, (tuple, list)) else (result,)

    with fake_mode_of(vals) or contextlib.nullcontext():
        return make_fx(call)(*vals)


def fake_mode_of(values: Sequence[object]) -> Any:
    """`torch._guards.detect_fake_mode`: run in 2.13, read in 2.11."""
    from torch._guards import detect_fake_mode

    return detect_fake_mode(list(values))


@contextlib.contextmanager
def truncated_init_without_reading() -> Iterator[None]:
    """Let `torch.nn.init.trunc_normal_` leave values alone: it reads them, and fake tensors have none.

    Patches `torch.nn.init._no_grad_trunc_normal_(tensor, …)`, which returns `tensor`: run in 2.13, read in 2.11.
    """
    from torch.nn import init

    original = init._no_grad_trunc_normal_
    init._no_grad_trunc_normal_ = lambda tensor, *args, **kwargs: tensor
    try:
        yield
    finally:
        init._no_grad_trunc_normal_ = original


def known_equal(a: Any, b: Any) -> bool:
    """Whether two sizes are equal for all values of their symbols, without a guard.

    `torch.fx.experimental.symbolic_shapes.statically_known_true`: run in 2.13, read in 2.11.
    """
    if isinstance(a, int) and isinstance(b, int):
        return a == b
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    return statically_known_true(a == b)


def partitioner_base() -> type:
    """`torch._inductor.custom_graph_pass.CustomPartitionerFn`: run in 2.13, read in 2.11 and 2.15."""
    from torch._inductor.custom_graph_pass import CustomPartitionerFn

    return CustomPartitionerFn


def emit_artifact(name: str, payload: Callable[[], str]) -> None:
    """Put a JSON text into TORCH_TRACE; `torch._logging.trace_structured`: run in 2.13, read in 2.11."""
    from torch._logging import trace_structured  # type: ignore[attr-defined]

    trace_structured("artifact", metadata_fn=lambda: {"name": name, "encoding": "json"}, payload_fn=payload)


def compile_with_inductor(gm: fx.GraphModule, inputs: Sequence[Any], patches: Mapping[str, Any]) -> Callable[..., Any]:
    """`torch._inductor.compile_fx.compile_fx(config_patches=…)`: run in 2.13, read in 2.11 and 2.15.

    The patches also hold when the backward graph compiles later, which a context around this call would not do.
    """
    from torch._inductor.compile_fx import compile_fx

    return compile_fx(gm, inputs, config_patches=dict(patches))  # type: ignore[return-value]


def partition_with_inductor(gm: fx.GraphModule, inputs: Sequence[Any], partitioner: object) -> Callable[..., Any]:
    """Run Inductor up to the partitioned graphs and interpret those: `compile_fx(inner_compile=…)`,
    `fx_passes.post_grad.view_to_reshape`, `backends.debugging.boxed_nop`: run in 2.13, read in 2.11."""
    from torch._dynamo.backends.debugging import boxed_nop
    from torch._inductor.compile_fx import compile_fx
    from torch._inductor.fx_passes.post_grad import view_to_reshape

    def interpret(graph: fx.GraphModule, example_inputs: Sequence[Any], **kwargs: Any) -> Callable[..., Any]:
        # Inductor may lay tensors out in other strides than the graph states, and so do we for it.
        view_to_reshape(graph)  # type: ignore[no-untyped-call]
        graph.recompile()
        return boxed_nop(graph, list(example_inputs))

    patches = {"custom_partitioner_fn": partitioner, "fx_graph_cache": False}
    return compile_fx(gm, inputs, inner_compile=interpret, config_patches=patches)  # type: ignore[return-value, arg-type]


def compile_with_aot_eager(
    gm: fx.GraphModule, inputs: Sequence[Any], partition_fn: Callable[..., Any]
) -> Callable[..., Any]:
    """What torch's `aot_eager` backend does, with another partitioner.

    `torch._dynamo.backends.common.aot_autograd`, `backends.debugging.boxed_nop`: run in 2.13, read in 2.11.
    """
    from torch._dynamo.backends.common import aot_autograd
    from torch._dynamo.backends.debugging import boxed_nop

    backend = aot_autograd(
        fw_compiler=boxed_nop, bw_compiler=boxed_nop, partition_fn=partition_fn, keep_inference_input_mutations=True
    )
    return backend(gm, inputs)


def inductor_mode_options(mode: str | None) -> dict[str, Any]:
    """Config patches of an Inductor mode; `torch._inductor.list_mode_options`: run in 2.13, read in 2.11."""
    from torch._inductor import list_mode_options

    return dict(list_mode_options(mode)) if mode not in (None, "default") else {}


def set_inductor_config(values: Mapping[str, Any]) -> dict[str, Any]:
    """Set Inductor's `custom_partitioner_fn`, `allow_buffer_reuse`, `_pre_fusion_custom_pass`, `realize_…_threshold`;
    returns the old. Run in 2.13, read in 2.11."""
    from torch._inductor import config

    previous = {name: getattr(config, name) for name in values}
    for name, value in values.items():
        setattr(config, name, value)
    return previous


def reset_cuda_graphs() -> None:
    """Forget recorded CUDA graphs; `torch._inductor.cudagraph_trees.reset_cudagraph_trees`: read in 2.11 and 2.13."""
    if torch.cuda.is_available():
        from torch._inductor.cudagraph_trees import reset_cudagraph_trees

        reset_cudagraph_trees()


def inductor_uses_channels_last(gm: fx.GraphModule) -> bool:
    """Whether Inductor computes this graph's convolutions with channels last.

    `torch._inductor.graph.GraphLowering.decide_layout_opt(gm, is_inference)`: run in 2.13, read in 2.11.
    """
    from torch._inductor.graph import GraphLowering

    return bool(GraphLowering.decide_layout_opt(gm, is_inference=False))


def convolution_sums_products(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, arguments: Sequence[Any]
) -> bool:
    """Whether ATen's CPU kernel for this convolution adds products as they are, without a transform.

    `torch._C._select_conv_backend`: run in 2.13, read in 2.11. oneDNN's direct algorithm and `slow_conv` do; NNPACK and
    depthwise Winograd do not. `torch.backends.mkldnn.enabled` decides too, and must not change after compiling.

    Args:
        x, weight, bias: the operands, fake or real, of static sizes.
        arguments: stride, padding, dilation, transposed, output_padding, groups.
    """
    mode = fake_mode_of([x, weight])
    with mode or contextlib.nullcontext():
        backend = torch._C._select_conv_backend(x, weight, bias, *arguments, None)
    return backend.name in ("Mkldnn", "Slow2d", "SlowDilated2d", "Slow3d", "SlowDilated3d")


def force_stride_order() -> Any:
    """The operator that asks Inductor for a tensor in given strides: a copy only where it lies otherwise.

    `torch.ops.prims.inductor_force_stride_order(x, strides)`: run in 2.13, read in 2.11.
    """
    import torch._inductor.inductor_prims

    return torch.ops.prims.inductor_force_stride_order.default


def invoke_subgraph() -> Any:
    """The operator that calls a subgraph by name; Inductor compiles equal names once.

    `torch._higher_order_ops.invoke_subgraph.invoke_subgraph(subgraph, name, *tensors)`: run in 2.13, read in 2.11.
    """
    from torch._higher_order_ops.invoke_subgraph import invoke_subgraph as operator

    return operator


def auto_functionalized() -> Any:
    """The operator that calls a mutating operator on copies; Inductor leaves the copies out where nobody can tell.

    `torch._higher_order_ops.auto_functionalize.auto_functionalized(op, **arguments)`: run in 2.13, read in 2.11.
    """
    from torch._higher_order_ops.auto_functionalize import auto_functionalized as operator

    return operator


def is_tracing() -> bool:
    """Whether make_fx is recording; `proxy_tensor.get_proxy_mode`: run in 2.13, read in 2.11."""
    from torch.fx.experimental.proxy_tensor import get_proxy_mode

    return get_proxy_mode() is not None
