"""Which kernels must not be put off, for their operands would stay in memory until then.

A compiler that fuses may run a kernel anywhere between its operands and its readers: the small sums of many layers end
up in one kernel behind the last layer, and all that they sum over waits for it. `find_bounds` says which kernel must
run before which library call, so that memory is what the order of the graph says. Read-only.
"""

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

MANY = 4
"""So many times the bytes that a kernel makes, kept, are worth holding what it makes during the call that is through
with its operands."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """One kernel of a step before any are fused: bytes of what it makes and of the freed-after-use buffers it reads.

    `called`: a library's, which is fused with nothing that is not at hand when it runs.
    """

    reads: Mapping[str, int]
    makes: Mapping[str, int]
    called: bool


@dataclass(frozen=True, slots=True)
class _Step:
    """The kernels, positions of calls among them, and of the readers of each buffer."""

    kernels: Sequence[Kernel]
    calls: list[int]
    readers: dict[str, list[int]]


def find_bounds(kernels: Sequence[Kernel]) -> list[tuple[int, int]]:
    """The pairs of kernels of which the first must run before the second, as positions, in the order of the first.

    Putting a kernel off saves what it makes, and keeps each operand alive whose other readers are through. The bound
    is the first library call behind the point where the kept bytes are more than the saved ones; where they are many
    times more and that point is a call itself, it is that one, behind which other kernels wait to be fused. Kernels
    that share what nothing else reads, with no call between them, are one: what they share is never stored. Only where
    a call needs some of them, the others can still be put off behind it: they are judged by themselves, too.

    Args:
        kernels: in the order that is to be kept. What nobody frees, such as parameters, is not among the reads.
    """
    readers: dict[str, list[int]] = {}
    for position, kernel in enumerate(kernels):
        for name in kernel.reads:
            readers.setdefault(name, []).append(position)
    step = _Step(kernels, [position for position, kernel in enumerate(kernels) if kernel.called], readers)
    needed = _first_calls(step)
    bounds: dict[int, int] = {}
    for members, inner in _fused(range(len(kernels)), step):
        bounds |= dict.fromkeys(members, _call_behind(members, inner, 0, step))
        soonest = min(needed[member] for member in members)
        for part, own in _fused([member for member in members if needed[member] > soonest], step):
            call = _call_behind(part, own, soonest, step)
            bounds |= {member: min(call, bounds[member]) for member in part}
    return sorted((member, call) for member, call in bounds.items() if call < len(kernels))


def _first_calls(step: _Step) -> list[int]:
    """For each kernel, the position of the first call that needs what it makes; behind the last kernel if none does."""
    found = [len(step.kernels)] * len(step.kernels)
    for position in reversed(range(len(step.kernels))):
        readers = (reader for name in step.kernels[position].makes for reader in step.readers.get(name, []))
        calls = (reader if step.kernels[reader].called else found[reader] for reader in readers)
        found[position] = min(calls, default=found[position])
    return found


def _call_behind(members: list[int], inner: set[str], soonest: int, step: _Step) -> int:
    """The first call, not before position `soonest`, that kernels which are one must run before; behind the last kernel
    if there is none."""
    reads = {name: size for i in members for name, size in step.kernels[i].reads.items() if name not in inner}
    made = sum(size for i in members for name, size in step.kernels[i].makes.items() if name not in inner)
    start = _costly_from(reads, made, step.readers)
    if start is None:
        return len(step.kernels)
    small = start == _costly_from(reads, MANY * made, step.readers)
    if small and step.kernels[start].called and start > members[-1] and start >= soonest:
        return start
    following = bisect_right(step.calls, max(start, members[-1], soonest - 1))
    return step.calls[following] if following < len(step.calls) else len(step.kernels)


def _fused(positions: Sequence[int], step: _Step) -> Iterator[tuple[list[int], set[str]]]:
    """Positions of kernels that are one, rising, and the buffers that only they read."""
    leader = {position: position for position in positions}
    inner: dict[str, int] = {}
    for position in positions:
        kernel = step.kernels[position]
        for name in kernel.makes:
            near = step.readers.get(name, [])
            if not near or kernel.called or not leader.keys() >= set(near):
                continue
            if bisect_right(step.calls, position) != bisect_right(step.calls, near[-1]):
                continue
            inner[name] = position
            for reader in near:
                _join(leader, position, reader)
    groups: dict[int, list[int]] = {}
    for position in positions:
        groups.setdefault(_find(leader, position), []).append(position)
    shared: dict[int, set[str]] = {}
    for name, position in inner.items():
        shared.setdefault(_find(leader, position), set()).add(name)
    for first, members in groups.items():
        yield members, shared.get(first, set())


def _find(leader: dict[int, int], position: int) -> int:
    while leader[position] != position:
        leader[position] = position = leader[leader[position]]
    return position


def _join(leader: dict[int, int], one: int, other: int) -> None:
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
