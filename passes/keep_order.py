"""Which kernels must not be put off, for their operands would stay in memory until then.

A compiler that fuses may run a kernel anywhere between its operands and its readers: the small sums of many layers end
up in one kernel behind the last layer, and all that they sum over waits for it. `find_bounds` says which kernel must
run before which library call, so that memory is what the order of the graph says. Read-only.
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Kernel:
    """One kernel of a step: bytes of the freed-after-use buffers that it reads, by name; bytes of what it makes.

    `called`: a library's, which is fused with nothing that is not at hand when it runs.
    """

    reads: Mapping[str, int]
    made_bytes: int
    called: bool


def find_bounds(kernels: Sequence[Kernel]) -> list[tuple[int, int]]:
    """The pairs of kernels of which the first must run before the second, as positions, in the order of the first.

    Putting a kernel off saves what it makes, and keeps each operand alive whose other readers are through. The bound
    is the first library call behind the point where the kept bytes are more than the saved ones.

    Args:
        kernels: in the order that is to be kept. What nobody frees, such as parameters, is not among the reads.
    """
    last: dict[str, int] = {}
    for position, kernel in enumerate(kernels):
        last.update(dict.fromkeys(kernel.reads, position))
    calls = [position for position, kernel in enumerate(kernels) if kernel.called]
    bounds = []
    for position, kernel in enumerate(kernels):
        start = _costly_from(kernel, last)
        following = bisect_right(calls, max(start, position)) if start is not None else len(calls)
        if following < len(calls):
            bounds.append((position, calls[following]))
    return bounds


def _costly_from(kernel: Kernel, last: Mapping[str, int]) -> int | None:
    """The position from which on putting the kernel off costs memory; None if it never does."""
    kept = 0
    for name, nbytes in sorted(kernel.reads.items(), key=lambda item: last[item[0]]):
        kept += nbytes
        if kept > kernel.made_bytes:
            return last[name]
    return None
