"""Which elements of which buffers each scheduled kernel touches, read off Inductor's schedule.

Run in torch 2.13. `dependencies.MemoryDep` states an index expression over loop ranges; `StarDep` a whole buffer.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from bench.fake_cuda.lower import Lowered


@dataclass(frozen=True, slots=True)
class Access:
    """`count` distinct elements of a buffer with linear indices in low … high.

    Attributes:
        buffer: its name in the generated code.
        low, high: smallest and largest index.
        count: elements, an upper bound where an index expression reaches some twice.
        itemsize: bytes per element.
    """

    buffer: str
    low: int
    high: int
    count: int
    itemsize: int


@dataclass(frozen=True, slots=True)
class Scheduled:
    """One scheduled kernel; a launch in the code is recognised by the names in `marks`."""

    library: bool
    marks: frozenset[str]
    reads: tuple[Access, ...]
    writes: tuple[Access, ...]


def scheduled(lowered: Lowered) -> list[Scheduled]:
    """The kernels of a graph in the order of the schedule."""
    from torch._inductor.virtualized import V

    with V.set_graph_handler(lowered.graph):  # type: ignore[no-untyped-call]
        return [found for node in lowered.graph.scheduler.nodes if (found := _read_node(node)) is not None]


def _read_node(node: Any) -> Scheduled | None:
    from torch._inductor import ir, scheduler

    if isinstance(node, scheduler.NopKernelSchedulerNode):
        return None
    if isinstance(node, scheduler.ExternKernelSchedulerNode):
        return None if isinstance(node.node, ir.MultiOutput) else _library(node)
    reads = [a for part in node.get_nodes() for dep in part.read_writes.reads for a in _accesses(node.scheduler, dep)]
    writes = [a for part in node.get_nodes() for dep in part.read_writes.writes for a in _accesses(node.scheduler, dep)]
    own = frozenset(access.buffer for access in writes)
    atomic = [a for part in node.get_nodes() for dep in part.read_writes.writes if getattr(dep, "mode", None) for a in _accesses(node.scheduler, dep)]
    reads = [access for access in reads if access.buffer not in own]
    return Scheduled(False, own, (*reads, *atomic), tuple(writes))


def _accesses(scheduler: Any, dep: Any) -> Iterator[Access]:
    from torch._inductor.dependencies import MemoryDep, WeakDep
    from torch._inductor.utils import get_dtype_size
    from torch._inductor.virtualized import V

    if isinstance(dep, WeakDep):
        return
    name = scheduler.mutation_real_name.get(dep.name, dep.name)
    if name not in V.graph.name_to_buffer and name not in V.graph.graph_inputs and name not in V.graph.constants:
        return
    numel, itemsize = int(V.graph.get_numel(name)), get_dtype_size(V.graph.get_dtype(name))
    low, high, count = _reach(dep, numel) if isinstance(dep, MemoryDep) else (0, numel - 1, numel)
    if count:
        yield Access(name, low, high, count, itemsize)


def _reach(dep: Any, numel: int) -> tuple[int, int, int]:
    """Bounds and number of the elements of a buffer of `numel` elements that an index expression reaches."""
    from torch.utils._sympy.value_ranges import ValueRanges, bound_sympy

    if dep.is_indirect():
        return 0, numel - 1, min(math.prod(int(size) for size in dep.size), numel)
    ranges = {var: ValueRanges(0, int(size) - 1) for var, size in zip(dep.var_names, dep.size, strict=True)}
    bounds = bound_sympy(dep.index, ranges)
    low, high = max(int(bounds.lower), 0), int(bounds.upper)
    return low, high, min(int(dep.get_numel()), high - low + 1)


def _library(node: Any) -> Scheduled:
    from torch._inductor import ir

    kernel = node.node
    reads = [access for source in _flat(kernel.inputs) for access in _whole(source)]
    children = [op for op in _operations() if isinstance(op, ir.MultiOutput) and op.inputs[0].get_name() == kernel.get_name()]
    results = children or [kernel]
    writes = [access for result in results for access in _whole(result)]
    return Scheduled(True, frozenset({kernel.get_name()}), tuple(reads), tuple(writes))


def _operations() -> list[Any]:
    from torch._inductor.virtualized import V

    return list(V.graph.operations)


def _flat(inputs: Any) -> Iterator[Any]:
    for item in inputs:
        if isinstance(item, (list, tuple)):
            yield from _flat(item)
        else:
            yield item


def _whole(value: Any) -> Iterator[Access]:
    """All elements of a tensor or of a view; an expanded dimension holds one."""
    from torch._inductor import ir
    from torch._inductor.utils import get_dtype_size

    layout = value.maybe_get_layout()
    if not isinstance(layout, ir.Layout):
        return
    sizes, strides = [int(s) for s in layout.size], [int(s) for s in layout.stride]
    count = math.prod(size for size, stride in zip(sizes, strides, strict=True) if stride or size == 0)
    span = sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
    if count:
        low = int(layout.offset)
        yield Access(value.get_name(), low, low + span, count, get_dtype_size(layout.dtype))
