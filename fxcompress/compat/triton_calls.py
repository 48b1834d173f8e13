"""Triton kernels as nodes of a graph."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx


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
