"""Every private PyTorch name that fxcompress uses, in one place.

Each function states what it wraps and the versions in which the name and signature were checked: "run" means executed
by the test suite on that version, "read" means its source was compared.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

TESTED = ("2.11", "2.13")
"""Oldest (read) and newest (run) torch minor that the names below were checked in."""

Partition = tuple[fx.GraphModule, fx.GraphModule]


def partition(
    joint: fx.GraphModule,
    joint_inputs: object,
    *,
    num_fwd_outputs: int,
    static_lifetime_input_indices: Sequence[int] | None,
    rebuild_more: bool,
) -> Partition:
    """PyTorch's min-cut partitioner; `min_cut_rematerialization_partition` is run in 2.13, read in 2.11 and 2.15.

    Views are recomputed, so that bases are saved and not their aliases. With `rebuild_more`, pointwise results that a
    backward GEMM reads may be rebuilt too (`ban_recompute_materialized_backward`): decoding materializes them anyway.
    """
    from torch._functorch import config, partitioners

    relaxed: dict[str, Any] = {"ban_recompute_materialized_backward": False} if rebuild_more else {}
    with config.patch(recompute_views=True, **relaxed):
        return partitioners.min_cut_rematerialization_partition(
            joint,
            joint_inputs,
            num_fwd_outputs=num_fwd_outputs,
            static_lifetime_input_indices=list(static_lifetime_input_indices or []),
        )


NodeInfo = Any
"""`partitioners.NodeInfo`: PyTorch's classification of a joint graph's nodes; read in 2.11, run in 2.13."""
Chooser = Callable[[fx.Graph, NodeInfo, Callable[[bool], list[fx.Node]]], list[fx.Node]]
"""`(joint graph, classification, PyTorch's choice) -> values to save`; that choice takes whether to rebuild more."""


@contextlib.contextmanager
def choosing_saved_values(chooser: Chooser) -> Iterator[None]:
    """Let `chooser` answer when PyTorch's partitioner asks what to save.

    Patches `partitioners.choose_saved_values_set(joint_graph, node_info, memory_budget)`: run in 2.13, read in 2.11.
    """
    from torch._functorch import config, partitioners

    original = partitioners.choose_saved_values_set

    def choose(joint_graph: fx.Graph, node_info: NodeInfo, memory_budget: float = 1) -> list[fx.Node]:
        def torch_choice(rebuild_more: bool) -> list[fx.Node]:
            with config.patch(recompute_views=rebuild_more, ban_recompute_materialized_backward=not rebuild_more):
                return list(original(joint_graph, node_info, memory_budget=memory_budget))

        return chooser(joint_graph, node_info, torch_choice)

    partitioners.choose_saved_values_set = choose
    try:
        yield
    finally:
        partitioners.choose_saved_values_set = original


@dataclass(frozen=True, slots=True)
class RecomputeRules:
    """Nodes that depend on a tangent; other results of the backward; what runs once; what a checkpoint recomputes."""

    backward: frozenset[fx.Node]
    wanted: frozenset[fx.Node]
    fixed: frozenset[fx.Node]
    forced: frozenset[fx.Node]


def recompute_rules(joint: fx.Graph, info: NodeInfo) -> RecomputeRules:
    """The rules of `partitioners.solve_min_cut` that are about legality, without its heuristics about speed.

    `partitioners.must_recompute`, `NodeInfo.required_bw_nodes`, `tangents_closure`: run in
    2.13, read in 2.11.
    """
    from torch._functorch import partitioners

    forced = {node for node in joint.nodes if partitioners.must_recompute(node)}
    fixed = {node for node in joint.nodes if _runs_once(node) and info.is_required_fw(node)}
    fixed |= {node for node in joint.find_nodes(op="placeholder") if node not in info.required_bw_nodes}
    backward = frozenset(info.tangents_closure)
    return RecomputeRules(
        backward, frozenset(info.required_bw_nodes) - backward, frozenset(fixed - forced), frozenset(forced)
    )


def _runs_once(node: fx.Node) -> bool:
    """Random, marked by PyTorch as to be saved, or an operator of which nothing is known."""
    from torch.utils.checkpoint import CheckpointPolicy

    if node.op != "call_function":
        return False
    if node.meta.get("recompute") is CheckpointPolicy.MUST_SAVE:
        return True
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        return (
            torch.Tag.nondeterministic_seeded in target.tags
            or target.namespace not in ("aten", "prims")
            or target._schema.is_mutable
        )
    return isinstance(target, torch._ops.HigherOrderOperator)


def inductor_decompositions() -> Mapping[Any, Callable[..., Any]]:
    """`torch._inductor.decomposition.select_decomp_table()`: run in 2.13, read in 2.11."""
    import torch._inductor.lowering  # noqa: F401  (max_pool's decomposition needs it imported first)
    from torch._inductor.decomposition import select_decomp_table

    return select_decomp_table()


def fake_mode_of(values: Sequence[object]) -> Any:
    """`torch._guards.detect_fake_mode`: run in 2.13, read in 2.11."""
    from torch._guards import detect_fake_mode

    return detect_fake_mode(list(values))


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
    `fx_passes.post_grad.view_to_reshape`: run in 2.13, read in 2.11."""
    from torch._inductor.compile_fx import compile_fx
    from torch._inductor.fx_passes.post_grad import view_to_reshape

    def interpret(graph: fx.GraphModule, example_inputs: Sequence[Any], **kwargs: Any) -> Callable[..., Any]:
        # Inductor may lay tensors out in other strides than the graph states, and so do we for it.
        view_to_reshape(graph)  # type: ignore[no-untyped-call]
        graph.recompile()
        return lambda *args: graph.forward(*args)

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
    """Set Inductor's `custom_partitioner_fn`, `allow_buffer_reuse`; returns the old. Run in 2.13, read in 2.11."""
    from torch._inductor import config

    previous = {name: getattr(config, name) for name in values}
    for name, value in values.items():
        setattr(config, name, value)
    return previous


def compile_cache_dir() -> str:
    """Where Inductor keeps its caches; `runtime.cache_dir_utils.cache_dir`: run in 2.13, read in 2.11."""
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    return str(cache_dir())


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


def invoke_subgraph() -> Any:
    """The operator that calls a subgraph by name; Inductor compiles equal names once.

    `torch._higher_order_ops.invoke_subgraph.invoke_subgraph(subgraph, name, *tensors)`: run in 2.13, read in 2.11.
    """
    from torch._higher_order_ops.invoke_subgraph import invoke_subgraph as operator

    return operator


def is_tracing() -> bool:
    """Whether make_fx is recording; `proxy_tensor.get_proxy_mode`: run in 2.13, read in 2.11."""
    from torch.fx.experimental.proxy_tensor import get_proxy_mode

    return get_proxy_mode() is not None


def triton_node(
    kernel: Any,
    programs: Any,
    inputs: Mapping[str, torch.Tensor],
    outputs: Mapping[str, torch.Tensor],
    numbers: Mapping[str, Any],
    constants: Mapping[str, object],
) -> tuple[torch.Tensor, ...]:
    """Record a Triton call that leaves its arguments alone and returns `outputs` filled, in their order.

    `torch._higher_order_ops.triton_kernel_wrap.triton_kernel_wrapper_functional`, `kernel_side_table`: run in 2.13,
    read in 2.11. Tracing `wrap_triton` under functionalization comes to the same node, but asks a GPU driver on the way
    to find out which arguments the kernel writes, and takes all of them where there is no driver.
    """
    from torch._higher_order_ops import triton_kernel_wrap as wrap

    filled = wrap.triton_kernel_wrapper_functional(
        kernel_idx=wrap.kernel_side_table.add_kernel(kernel),
        constant_args_idx=wrap.kernel_side_table.add_constant_args(dict(constants)),
        grid=[(programs, 1, 1)],
        tma_descriptor_metadata={},
        kwargs={**inputs, **outputs, **numbers},
        tensors_to_clone=list(outputs),
    )
    return tuple(filled[name] for name in outputs)


def triton_nodes(graph: fx.Graph) -> list[fx.Node]:
    """The calls that `triton_node` recorded; `triton_kernel_wrapper_functional`: run in 2.13, read in 2.11."""
    from torch._higher_order_ops.triton_kernel_wrap import triton_kernel_wrapper_functional

    return list(graph.find_nodes(op="call_function", target=triton_kernel_wrapper_functional))
