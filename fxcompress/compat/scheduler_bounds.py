"""Inductor's scheduler: bounds on the order of kernels before they are fused.

Names of `torch._inductor.custom_graph_pass`, `.scheduler`, `.memory`, `.dependencies`, `.utils` and `.virtualized`: run
in 2.11 and 2.13.
"""

from collections.abc import Sequence
from typing import Any

from fxcompress.passes.keep_order import Kernel, find_bounds


def pass_base() -> type:
    """`CustomSchedulerPass`, which 2.11 does not have: there a `CustomGraphPass` is called with the nodes."""
    from torch._inductor import custom_graph_pass

    base: type = getattr(custom_graph_pass, "CustomSchedulerPass", custom_graph_pass.CustomGraphPass)
    return base


class KeepOrder(pass_base()):  # type: ignore[misc]
    """A `_pre_fusion_custom_pass` that keeps kernels in the graph's order where memory depends on it."""

    def __call__(self, nodes: list[Any]) -> list[Any]:
        from torch._inductor.utils import contains_collective

        # Which collectives overlap with what is decided by their order, and not by memory alone.
        if nodes and not any(map(contains_collective, nodes)):
            bounds = find_bounds(_kernels(nodes))
            for first, second in bounds:
                _bound(nodes[first], nodes[second])
            if bounds:
                nodes[0].scheduler.compute_ancestors()
        return nodes

    def uuid(self) -> str:
        """The partitioner's own, which covers our sources, is part of the same cache keys."""
        return "fxcompress.keep_order"


def _kernels(nodes: Sequence[Any]) -> list[Kernel]:
    from torch._inductor.memory import compute_size_for_scheduler_buffer
    from torch._inductor.virtualized import V

    made = {name: sizes[1] for name, sizes in compute_size_for_scheduler_buffer(nodes[0].scheduler.name_to_buf).items()}
    kept = set(V.graph.get_output_names())

    def nbytes(dep: Any) -> int:
        if dep.name in kept:
            return 0
        return made[dep.name] if dep.name in made else input_nbytes(dep)

    kernels = []
    for node in nodes:
        reads = {dep.name: nbytes(dep) for dep in node.read_writes.reads}
        makes = {buffer.get_name(): made.get(buffer.get_name(), 0) for buffer in node.get_outputs()}
        kernels.append(Kernel({name: size for name, size in reads.items() if size}, makes, _is_called(node)))
    return kernels


def input_nbytes(dep: Any) -> int:
    """Bytes of a graph's input, 0 where it outlives the step.

    `get_dep_size_hint` counts a group's scale once for every element of the group.
    """
    from torch._inductor.utils import is_nonfreeable_buffers
    from torch._inductor.virtualized import V

    return 0 if is_nonfreeable_buffers(dep) or V.graph.get_dep_size_hint(dep) == 0 else buffer_nbytes(dep.name)


def buffer_nbytes(name: str) -> int:
    """Bytes of a buffer's elements."""
    from torch._inductor.utils import get_dtype_size
    from torch._inductor.virtualized import V

    count = V.graph.sizevars.optimization_hint(V.graph.get_numel(name), fallback=0)
    return int(count) * int(get_dtype_size(V.graph.get_dtype(name)))


def _is_called(node: Any) -> bool:
    """Whether a node calls a library's kernel; picking one of several results runs nothing."""
    from torch._inductor.ir import MultiOutput
    from torch._inductor.scheduler import ExternKernelSchedulerNode

    return isinstance(node, ExternKernelSchedulerNode) and not isinstance(node.node, MultiOutput)


def _bound(first: Any, second: Any) -> None:
    """Let `first` run before `second`, as Inductor's own additional dependencies do; no buffer lives longer for it."""
    from torch._inductor.dependencies import WeakDep
    from torch._inductor.scheduler import NodeUser

    outputs = first.get_outputs()
    if not outputs or first.get_operation_names() & second.ancestors:
        return
    outputs[0].users.append(NodeUser(second, can_inplace=False, is_weak=True))
    second.add_fake_dep(WeakDep(outputs[0].get_name(), second.get_name(), is_fake=True))
