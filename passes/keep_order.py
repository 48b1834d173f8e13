"""Which kernels must not be put off, for their operands would stay in memory until then.

A compiler that fuses may run a kernel anywhere between its operands and its readers: the small sums of many layers end
up in one kernel behind the last layer, and all that they sum over waits for it. `find_bounds` says which kernel must
run before which library call, so that memory is what the order of the graph says. Read-only.
"""

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Kernel:
    """One kernel of a step before any are fused: bytes of what it makes and of the freed-after-use buffers it reads.

    `called`: a library's, which is fused with nothing that is not at hand when it runs.
    """

    reads: Mapping[str, int]
    makes: Mapping[str, int]
    called: bool


def find_bounds(kernels: Sequence[Kernel]) -> list[tuple[int, int]]:
    """The pairs of kernels of which the first must run before the second, as positions, in the order of the first.

    Putting a kernel off saves what it makes, and keeps each operand alive whose other readers are through. The bound
    is the first library call behind the point where the kept bytes are more than the saved ones. Kernels that share
    what nothing else reads, with no call between them, are one: what they share is never stored.

    Args:
        kernels: in the order that is to be kept. What nobody frees, such as parameters, is not among the reads.
    """
    calls = [position for position, kernel in enumerate(kernels) if kernel.called]
    readers: dict[str, list[int]] = {}
    for position, kernel in enumerate(kernels):
        for name in kernel.reads:
            readers.setdefault(name, []).append(position)
    bounds = []
    for members, inner in _fused(kernels, readers, calls):
        reads = {name: size for i in members for name, size in kernels[i].reads.items() if name not in inner}
        made = sum(size for i in members for name, size in kernels[i].makes.items() if name not in inner)
        start = _costly_from(reads, made, readers)
        following = bisect_right(calls, max(start, members[-1])) if start is not None else len(calls)
        if following < len(calls):
            bounds += [(member, calls[following]) for member in members]
    return sorted(bounds)


def _fused(
    kernels: Sequence[Kernel], readers: Mapping[str, list[int]], calls: Sequence[int]
) -> Iterator[tuple[list[int], set[str]]]:
    """Positions of kernels that are one, rising, and the buffers that only they read."""
    leader = list(range(len(kernels)))
    inner: dict[str, int] = {}
    for position, kernel in enumerate(kernels):
        for name in kernel.makes:
            near = readers.get(name, [])
            if not near or kernel.called or bisect_right(calls, position) != bisect_right(calls, near[-1]):
                continue
            inner[name] = position
            for reader in near:
                _join(leader, position, reader)
    groups: dict[int, list[int]] = {}
    for position in range(len(kernels)):
        groups.setdefault(_find(leader, position), []).append(position)
    shared: dict[int, set[str]] = {}
    for name, position in inner.items():
        shared.setdefault(_find(leader, position), set()).add(name)
    for first, members in groups.items():
        yield members, shared.get(first, set())


def _find(leader: list[int], position: int) -> int:
    while leader[position] != position:
        leader[position] = position = leader[leader[position]]
    return position


def _join(leader: list[int], one: int, other: int) -> None:
    first, second = _find(leader, one), _find(leader, other)
    leader[max(first, second)] = min(first, second)


def _costly_from(reads: Mapping[str, int], made_bytes: int, readers: Mapping[str, list[int]]) -> int | None:
    """The position from which on putting a kernel off costs memory; None if it never does."""
    kept = 0
    for name, nbytes in sorted(reads.items(), key=lambda item: readers[item[0]][-1]):
        kept += nbytes
        if kept > made_bytes:
            return readers[name][-1]
    return None
