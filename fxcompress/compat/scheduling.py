"""Inductor's scheduler: the order of kernels after they are fused.

Names of `torch._inductor.codegen.cpp`, `.scheduler`, `.memory`, `.dependencies`, `.utils` and `.virtualized`: run in
2.11 and 2.13.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import fx

from fxcompress.compat.lowering import call_of
from fxcompress.compat.scheduler_bounds import buffer_nbytes, input_nbytes, pass_base
from fxcompress.compat.split_loops import split_loops
from fxcompress.passes.order_launches import Fused, end_rows, order_launches

Workspace = Callable[[fx.Node], int]


class AfterFusion(pass_base()):  # type: ignore[misc]
    """A `_post_fusion_custom_pass` that splits loops, and runs fused kernels in the order of the least peak found.

    `workspace`: bytes that a node's call of a library on a CPU needs while it runs; a function of a module, for caches.
    """

    def __init__(self, *, split: bool, order: bool, workspace: Workspace) -> None:
        self.split = split
        self.order = order
        self.workspace = workspace

    def __call__(self, nodes: list[Any]) -> list[Any]:
        if self.split:
            split_loops(nodes)
        return _order(nodes, self.workspace) if self.order else nodes

    def uuid(self) -> str:
        """As for `KeepOrder`."""
        return f"fxcompress.after_fusion {self.split} {self.order}"


def _order(nodes: list[Any], workspace: Workspace) -> list[Any]:
    from torch._inductor.ir import Conditional
    from torch._inductor.utils import contains_collective
    from torch._inductor.virtualized import V

    if not nodes or any(isinstance(part.node, Conditional) for node in nodes for part in node.get_nodes()):
        return nodes
    if any(map(contains_collective, nodes)):
        return _order_by_inductor(nodes)
    on_cpu = not any(node.is_gpu() for node in nodes)
    launches, given = _launches(nodes, workspace if on_cpu else None)
    kept = frozenset(V.graph.get_output_names())
    order = order_launches(launches, given, kept)
    if on_cpu:
        _end_rows(nodes[0].scheduler, {nodes[i].get_name() for i in end_rows(order, launches, given, kept)})
    return [nodes[i] for i in order]


def _end_rows(scheduler: Any, names: set[str]) -> None:
    """Let the function of generated loops that a node of `names` is in return behind it.

    `CppScheduling._set_flush_status` asks for that, which Inductor does itself where such a function has 500 arguments;
    other backends generate no such functions.
    """
    from torch._inductor.codegen.cpp import CppScheduling

    cpu = torch.device("cpu")
    if not names or not isinstance(scheduler.get_backend(cpu), CppScheduling):
        return
    backend: Any = scheduler.get_backend(cpu)
    codegen_node = backend.codegen_node

    def codegen_and_end(node: Any) -> None:
        codegen_node(node)
        if node.get_name() in names:
            backend._set_flush_status(True)

    backend.codegen_node = codegen_and_end


def _order_by_inductor(nodes: list[Any]) -> list[Any]:
    """What Inductor does behind this pass where its own reordering is not off."""
    from torch._inductor import memory
    from torch._inductor.virtualized import V
    from torch.utils._ordered_set import OrderedSet

    scheduler = nodes[0].scheduler
    inputs, results = OrderedSet(V.graph.graph_inputs), OrderedSet(V.graph.get_output_names())
    ordered: list[Any] = memory.reorder_for_peak_memory(
        nodes, scheduler.name_to_buf, scheduler.name_to_fused_node, inputs, results
    )
    return ordered


def _launches(nodes: Sequence[Any], workspace: Workspace | None) -> tuple[list[Fused], dict[str, int]]:
    """The kernels after fusion, and the inputs that the graph frees. What a backward returns counts nothing."""
    from torch._inductor.memory import compute_size_for_scheduler_buffer
    from torch._inductor.virtualized import V

    scheduler = nodes[0].scheduler
    sizes = {name: freed for name, (_, freed) in compute_size_for_scheduler_buffer(scheduler.name_to_buf).items()}
    if V.graph.is_backward:
        sizes.update(dict.fromkeys(V.graph.get_output_names(), 0))
    position = {name: i for i, node in enumerate(nodes) for name in node.get_buffer_names()}
    made: list[dict[str, int]] = [{} for _ in nodes]
    given: dict[str, int] = {}
    launches = []
    seeded = [i for i, node in enumerate(nodes) if _has_effect(node)]
    before = dict(zip(seeded[1:], seeded, strict=False))
    for i, node in enumerate(nodes):
        for name in _stored(node):
            made[_maker(node, name, position, i)][name] = sizes.get(name, 0)
    for i, node in enumerate(nodes):
        read = set()
        for dep in node.read_writes.reads:
            name = scheduler.mutation_real_name.get(dep.name, dep.name)
            if name not in position and name not in given and (size := input_nbytes(dep)):
                given[name] = size
            if not _only_orders(dep) and (name in given or name in position):
                read.add(name)
        after = {position[dep.name] for dep in node.unmet_dependencies if dep.name in position}
        after |= {before[i]} if i in before else set()
        inner = node.get_buffer_names() - made[i].keys()
        read -= inner
        needed = _workspace_nbytes(node, workspace) if workspace is not None and node.is_extern() else 0
        launches.append(
            Fused(made[i], frozenset(read), frozenset(after - {i}), _yielded(node) & read, node.is_extern(), needed)
        )
    return launches, given


def _workspace_nbytes(node: Any, workspace: Workspace) -> int:
    called = call_of(node.node)
    return 0 if called is None else workspace(called)


def _has_effect(node: Any) -> bool:
    """Whether it must keep its place among its like: what draws from a generator, or acts on something unseen."""
    for part in node.get_nodes():
        tags = getattr(getattr(part.node, "op_overload", None), "tags", ())
        if torch.Tag.nondeterministic_seeded in tags or part.has_side_effects():
            return True
    return False


def _yielded(node: Any) -> frozenset[str]:
    """Operands that a generated kernel may write its result over: Inductor does so where one part of it reads them.

    On a CPU the parts run one behind the other, so that the last one that reads an operand may; not where several
    share an outer loop.
    """
    from torch._inductor.codegen.cpp import OuterLoopFusedSchedulerNode

    if node.is_extern() or isinstance(node, OuterLoopFusedSchedulerNode):
        return frozenset()
    readers: dict[str, list[Any]] = {}
    for part in node.get_nodes():
        for dep in part.read_writes.reads:
            readers.setdefault(dep.name, []).append(part)
    if node.is_gpu():
        return frozenset(name for name, parts in readers.items() if len(parts) == 1)
    own = node.get_buffer_names()
    places: dict[str, list[str]] = {}
    for part in node.get_nodes():
        for buffer in part.get_outputs():
            name = buffer.get_name()
            places[name] = []
            for dep in part.read_writes.reads:
                if not _may_write_over(part, dep.name, readers[dep.name], name):
                    continue
                if dep.name in own:
                    # What the kernel made for itself is taken first, and whatever that was written over.
                    places[name] += places.get(dep.name, [])
                    break
                places[name].append(dep.name)
    return frozenset(place for name in _stored(node) for place in places.get(name, ()))


def _may_write_over(part: Any, name: str, readers: Sequence[Any], result: str) -> bool:
    """`SchedulerNode.decide_inplace_update`, as in 2.13, but for readers outside of the kernel."""
    from torch._inductor.virtualized import V

    scheduler = part.scheduler
    buffer = scheduler.name_to_buf.get(name) or scheduler.name_to_donated_buffer.get(name)
    if buffer is None or readers[-1] is not part or buffer_nbytes(name) != buffer_nbytes(result):
        return False
    alike = {dep for reader in readers for dep in reader.read_writes.reads if dep.name == name}
    in_place = any(user.node is part and user.can_inplace for user in buffer.users)
    return len(alike) == 1 and in_place and V.graph.get_dtype(name) == V.graph.get_dtype(result)


def _stored(node: Any) -> Iterator[str]:
    """Buffers of a kernel that others read, or that the graph returns."""
    own = node.get_operation_names()
    for buffer in node.get_outputs():
        users = [user for user in buffer.users if not user.is_weak]
        if not users or any(user.get_name() not in own for user in users):
            yield buffer.get_name()


def _maker(node: Any, name: str, position: dict[str, int], own: int) -> int:
    """Where a buffer is allocated: one of several results where the library runs, and not where it is picked."""
    from torch._inductor.ir import MultiOutput

    picked = node.scheduler.name_to_buf[name].node
    if not isinstance(picked, MultiOutput):
        return own
    results: Any = picked.inputs[0]
    return position.get(results.get_name(), own)


def _only_orders(dep: Any) -> bool:
    from torch._inductor.dependencies import WeakDep

    return isinstance(dep, WeakDep) and dep.is_fake
