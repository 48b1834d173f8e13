"""Bytes and launches of the kernels that Inductor generated, counted from its schedule and its source.

What is counted: for every kernel and every buffer that it reads or writes in memory, the distinct elements that the
index expressions can reach, once, times the element size. That is what crosses the memory bus if a kernel's own data
stay on the chip and nothing stays there from one kernel to the next. So a kernel's second pass over an input is free
(`rereads` counts those apart), and so is reading what the same kernel wrote. Kernels of libraries (products,
convolutions, attention) count every operand and every result once, whatever they do inside. Atomic additions count as
a read and a write. Allocation, views, and scalar arguments cost nothing.

    kernels = count_kernels(lower(gm, is_backward=False))
"""

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from bench.compat.fake_cuda import Access, Lowered, Scheduled, scheduled

_LIBRARIES = r"(?:extern_kernels|aten|inductor_ops|torch\.ops)\.[\w.]+"
_LAUNCH = re.compile(rf"(?:^|[\w, ]+ = )(?:(\w+)\.run|({_LIBRARIES}))\((.*)\)$")
_WORKSPACE = re.compile(r"(workspace_\d+) = empty_strided_cuda\(\((\d+), \), \(1, \), torch\.float32\)")
_PARTIAL_SUM = re.compile(r"(\w+) = (workspace_\d+)\[.*\.sum\(dim=0\)")
_REUSED = re.compile(r"(workspace_\d+) = (workspace_\d+);")
_NAME = re.compile(r"[A-Za-z_]\w*")
_LOOP = re.compile(r"^\s*for r\d+_offset in ", re.MULTILINE)
_LOAD = re.compile(r"tl\.load\((\w+?_ptr\d+) ")
_WORD_BYTES = 4
SUM = "sum"
"""Name of the launch that adds up the partial results of a reduction over rows and columns at once."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """One launch; bytes by buffer.

    Attributes:
        name: of the generated function, or of the library's.
        library: whether a library runs it.
        origins: names of the graph nodes that it computes.
        reads, writes: bytes by buffer.
        rereads: bytes of the second and later passes over `reads`.
    """

    name: str
    library: bool
    origins: frozenset[str]
    reads: Mapping[str, int]
    writes: Mapping[str, int]
    rereads: int = 0

    @property
    def nbytes(self) -> int:
        """Bytes read and written."""
        return sum(self.reads.values()) + sum(self.writes.values())


@dataclass(frozen=True, slots=True)
class Launched:
    """One line of the wrapper that starts a kernel."""

    name: str
    library: bool
    buffers: frozenset[str]
    arguments: tuple[str, ...] = field(repr=False)


def count_kernels(lowered: Lowered) -> list[Kernel]:
    """Every launch of a graph in order, with its bytes.

    Raises:
        ValueError: schedule and source cannot be matched; then nothing about the graph is known.
    """
    body = wrapper_body(lowered.source)
    launches = find_launches(body)
    names = frozenset(name for launch in launches for name in launch.buffers)
    nodes = [node for node in scheduled(lowered) if node.reads or node.writes]
    costs: dict[int, Scheduled] = {}
    for node in nodes:
        if (at := _launch_of(node, launches, names, costs)) is not None:
            costs[at] = node
    workspaces = _workspace_bytes(body)
    sums = Counter(launch.arguments[0] for launch in launches if launch.name == SUM)
    passes = {name: count_passes(source) for name, source in kernel_sources(lowered.source).items()}
    return [_cost(launch, costs.get(i), names, workspaces, passes, sums) for i, launch in enumerate(launches)]


def wrapper_body(source: str) -> str:
    """The code that launches kernels, without comments."""
    body = source[source.rindex("async_compile.wait(globals())") :].split("\nrunner = ")[0]
    return "\n".join(line.split("#")[0].rstrip() for line in body.splitlines())


def find_launches(body: str) -> list[Launched]:
    """The lines of the wrapper that start a kernel, in order."""
    found = []
    for line in map(str.strip, body.splitlines()):
        names = frozenset(_NAME.findall(line))
        if match := _LAUNCH.match(line):
            kernel, library, arguments = match.groups()
            found.append(Launched(kernel or library, library is not None, names, tuple(split_arguments(arguments))))
        elif match := _PARTIAL_SUM.match(line):
            found.append(Launched(SUM, True, names, (match[2],)))
    return found


def split_arguments(text: str) -> Iterator[str]:
    """Arguments of a call, cut at the commas outside of brackets."""
    depth, start = 0, 0
    for i, char in enumerate(text):
        depth += (char in "([{") - (char in ")]}")
        if char == "," and not depth:
            yield text[start:i].strip()
            start = i + 1
    if text[start:].strip():
        yield text[start:].strip()


def kernel_sources(source: str) -> dict[str, str]:
    """The Triton source of every kernel by name."""
    parts = re.split(r"^(\w+) = async_compile\.triton\(", source, flags=re.MULTILINE)
    return {name: text.split("''', device_str")[0] for name, text in zip(parts[1::2], parts[2::2], strict=True)}


def count_passes(source: str) -> list[int]:
    """For each argument of a Triton kernel, in how many of its loops over a reduction it is loaded."""
    signature = re.search(r"^def \w+\(([^)]*)\)", source, re.MULTILINE)
    assert signature is not None
    loops = [frozenset(_LOAD.findall(part)) for part in _LOOP.split(source)[1:]]
    return [sum(name.strip() in loop for loop in loops) for name in signature[1].split(",")]


def merged_bytes(accesses: Iterable[Access]) -> dict[str, int]:
    """Bytes per buffer; elements that several accesses reach count once."""
    spans: dict[str, list[Access]] = defaultdict(list)
    for access in set(accesses):
        spans[access.buffer].append(access)
    return {buffer: _union(group) for buffer, group in spans.items()}


def _union(accesses: list[Access]) -> int:
    """Bytes of a union of accesses to one buffer: where spans overlap, no more than the overlapping spans hold."""
    total, low, high, count = 0, 0, -1, 0
    for access in sorted(accesses, key=lambda a: (a.low, a.high)):
        if access.low > high:
            total += min(count, high - low + 1)
            low, high, count = access.low, access.high, 0
        high, count = max(high, access.high), count + access.count
    return (total + min(count, high - low + 1)) * accesses[0].itemsize


def _launch_of(node: Scheduled, launches: list[Launched], names: frozenset[str], taken: Collection[int]) -> int | None:
    """Which launch runs a scheduled kernel; None if its results are never in memory.

    `taken`: launches that run kernels before it, some of which may write to the same buffer, as the zeros of a scatter.
    """
    marks = node.marks & names
    if not marks:
        return None
    for i, launch in enumerate(launches):
        if i not in taken and (launch.library == node.library or launch.name == SUM) and marks <= launch.buffers:
            return i
    raise ValueError(f"no launch writes {sorted(marks)}")


def _workspace_bytes(body: str) -> dict[str, int]:
    """Bytes of the scratch buffers of reductions that end in a second kernel."""
    found: dict[str, int] = {}
    for line in body.splitlines():
        if match := _WORKSPACE.search(line):
            found[match[1]] = int(match[2]) * _WORD_BYTES
        elif match := _REUSED.search(line):
            found[match[1]] = found[match[2]]
    return found


def _cost(
    launch: Launched,
    node: Scheduled | None,
    names: frozenset[str],
    workspaces: Mapping[str, int],
    passes: Mapping[str, list[int]],
    sums: Mapping[str, int],
) -> Kernel:
    reads = merged_bytes(a for a in node.reads if a.buffer in names) if node else {}
    writes = merged_bytes(a for a in node.writes if node.library or a.buffer in names) if node else {}
    scratch = {name: workspaces[name] for name in launch.arguments if name in workspaces}
    if launch.name == SUM:
        reads |= {name: nbytes // sums[name] for name, nbytes in scratch.items()}
    else:
        writes |= scratch
        if not reads and not writes:
            raise ValueError(f"nothing in the schedule belongs to {launch.name}({', '.join(launch.arguments)})")
    again = dict(zip(launch.arguments, passes.get(launch.name, ()), strict=False))
    rereads = sum(nbytes * max(again.get(name, 1) - 1, 0) for name, nbytes in reads.items())
    return Kernel(launch.name, launch.library, node.origins if node else frozenset(), reads, writes, rereads)
