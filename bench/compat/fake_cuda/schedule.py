"""Which elements of which buffers each scheduled kernel touches, read off Inductor's schedule.

`dependencies.MemoryDep` states an index expression over loop ranges, `StarDep` a whole buffer. Run in torch 2.11 and
2.13.
"""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from fxcompress.compat.lowering import Lowered
from fxcompress.passes.ops import is_view


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
    """One scheduled kernel.

    Attributes:
        library: whether a library runs it.
        marks: names by which its launch is recognised in the code: what it writes.
        origins: names of the graph nodes that it computes, those inlined from elsewhere included, views not.
        reads, writes: what it touches.
    """

    library: bool
    marks: frozenset[str]
    origins: frozenset[str]
    reads: tuple[Access, ...]
    writes: tuple[Access, ...]


def scheduled(lowered: Lowered) -> list[Scheduled]:
    """The kernels of a graph in the order of the schedule."""
    from torch._inductor.virtualized import V

    with V.set_graph_handler(lowered.graph):
        return [found for node in lowered.graph.scheduler.nodes if (found := _read_node(node)) is not None]


def _read_node(node: Any) -> Scheduled | None:
    from torch._inductor import ir, scheduler

    if isinstance(node, scheduler.NopKernelSchedulerNode):
        return None
    if isinstance(node, scheduler.ExternKernelSchedulerNode) and isinstance(node.node, ir.UserDefinedTritonKernel):
        return _written_by_hand(node)
    if isinstance(node, scheduler.ExternKernelSchedulerNode):
        return None if isinstance(node.node, ir.MultiOutput) else _library(node)
    reads = [access for dep in _dependencies(node, "reads") for access in _accesses(node.scheduler, dep)]
    writes = [access for dep in _dependencies(node, "writes") for access in _accesses(node.scheduler, dep)]
    atomic = [
        access
        for dep in _dependencies(node, "writes")
        if getattr(dep, "mode", None)
        for access in _accesses(node.scheduler, dep)
    ]
    own = frozenset(access.buffer for access in writes)
    foreign = [access for access in reads if access.buffer not in own]
    return Scheduled(False, own, _origins(node), (*foreign, *atomic), tuple(writes))


def _dependencies(node: Any, kind: str) -> Iterator[Any]:
    for part in node.get_nodes():
        yield from getattr(part.read_writes, kind)


def _origins(node: Any) -> frozenset[str]:
    origins = [origin for part in node.get_nodes() if part.node for origin in part.node.get_origins()]
    return frozenset(origin.name for origin in origins if not is_view(origin))


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


def _written_by_hand(node: Any) -> Scheduled:
    """A Triton kernel that came as such: it fills buffers that were made for it, and is known by those."""
    from torch._inductor.virtualized import V

    filled = frozenset(argument.get_name() for argument in node.node.mutable_args)
    accesses = [access for source in _flat(node.node.inputs) for access in _whole(source)]
    # A result that lies over an operand is an argument of its own.
    given = Counter(access.buffer for access in accesses)
    makers: list[Any] = [V.graph.get_buffer(name) for name in filled]
    origins = frozenset(origin.name for maker in makers for origin in maker.get_origins())
    reads = tuple(access for access in accesses if access.buffer not in filled or given[access.buffer] > 1)
    return Scheduled(False, filled, origins, reads, tuple(a for a in accesses if a.buffer in filled))


def _library(node: Any) -> Scheduled:
    from torch._inductor import ir
    from torch._inductor.virtualized import V

    kernel = node.node
    name = kernel.get_name()
    reads = [access for source in _flat(kernel.inputs) for access in _whole(source)]
    several: list[Any] = [op for op in V.graph.operations if isinstance(op, ir.MultiOutput)]
    parts = [op for op in several if op.inputs[0].get_name() == name]
    writes = [access for result in parts or [kernel] for access in _whole(result)]
    return Scheduled(True, frozenset({name}), _origins(node), tuple(reads), tuple(writes))


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
