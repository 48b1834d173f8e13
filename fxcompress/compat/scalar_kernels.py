"""Inductor's code for a CPU with each kernel in its shortest form, where only the wrapper around them is read.

Inductor writes a loop in scalar form, which decides what is allocated, removed and written in place, and then again in
one to five vectorized forms, which decide nothing any more. Kernels whose outer loops are shared are the exception: how
each is tiled decides whether they are.

Names of `torch._inductor.codegen.cpp` and `.cpu_vec_isa`: run in 2.11 and 2.13.
"""

from typing import Any

import torch


def write_scalar_kernels(graph: Any) -> None:
    """Let the `codegen` of a `GraphLowering` on a CPU write scalar kernels; nothing else is changed."""
    update = graph._update_scheduler

    def updated() -> None:
        update()
        _shorten(graph.scheduler.get_backend(torch.device("cpu")))

    graph._update_scheduler = updated


def _shorten(backend: Any) -> None:
    from torch._inductor.codegen.cpp import CppKernelProxy, CppScheduling, OuterLoopFusedSchedulerNode
    from torch._inductor.cpu_vec_isa import invalid_vec_isa

    class ScalarProxy(CppKernelProxy):
        def __init__(self, kernel_group: Any) -> None:
            super().__init__(kernel_group)  # type: ignore[no-untyped-call]
            self.picked_vec_isa = invalid_vec_isa

    if not isinstance(backend, CppScheduling):  # `config.cpu_backend` names another
        return
    vectorized, proxy = backend.codegen_node, backend.kernel_proxy_cls

    def codegen_node(node: Any) -> None:
        backend.kernel_proxy_cls = proxy if isinstance(node, OuterLoopFusedSchedulerNode) else ScalarProxy
        vectorized(node)

    backend.codegen_node = codegen_node  # type: ignore[method-assign]
