"""Live bytes of a graph, replayed from the code that Inductor generated for it.

Every allocation, deletion, view and taken-over buffer of the wrapper is followed in its order, so that what is counted
is what the allocator will be asked for.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch

_MADE = re.compile(r"(\w+) = empty_strided_\w+\((\(.*?\)), (\(.*?\)), torch\.(\w+)\)$")
_RENAMED = re.compile(r"(\w+) = (?:reinterpret_tensor\()?([A-Za-z_]\w*)(?:\)|, .*|)(?:; *|$)")
_CALLED = re.compile(r"(\w+) = (?:torch\.ops|aten|extern_kernels)\.")
_PICKED = re.compile(r"(\w+) = (\w+)(?:\[\d+\])?$")
"""One of several results of a library's kernel, or its only one by another name."""
_DELETED = re.compile(r"\bdel ([\w, ]+)")


@dataclass(frozen=True, slots=True)
class Moment:
    """Live bytes after one line of the wrapper; `most_bytes`: while it ran."""

    nbytes: int
    most_bytes: int
    line: str


def replay(
    source: str,
    given: Mapping[str, tuple[str, int]],
    result_nbytes: Mapping[str, int],
    *,
    uncounted: Iterable[str] = (),
    workspace_nbytes: Mapping[str, int] | None = None,
    block: int = 1,
) -> list[Moment]:
    """Live bytes line by line.

    Args:
        source: what Inductor generated.
        given: the arguments that die with their last reader, as names of their storages with bytes; the others
            outlive the step and never count.
        result_nbytes: of the buffers that libraries return.
        uncounted: names alive at the end whose memory never counts, also while it had others.
        workspace_nbytes: what the call that returns a buffer needs besides.
        block: what the allocator rounds up to, in bytes.
    """
    lines, working = list(call_lines(source)), workspace_nbytes or {}
    picked: dict[str, list[str]] = {}
    for line in lines:
        if (pick := _PICKED.match(line)) and not result_nbytes.get(pick[2], 1):
            picked.setdefault(pick[2], []).append(pick[1])
    first = _Memory(lambda nbytes: -(-nbytes // block) * block, picked)
    first.start(given)
    for line in lines:
        first.follow(line, result_nbytes)
        first.delete(line)
    memory = _Memory(first.rounded, picked, frozenset(first.block[name] for name in uncounted if name in first.block))
    memory.start(given)
    moments = []
    for line in lines:
        memory.follow(line, result_nbytes)
        called = _CALLED.match(line)
        top = memory.live() + (working.get(called[1], 0) if called else 0)
        memory.delete(line)
        moments.append(Moment(memory.live(), top, line))
    return moments


def call_lines(source: str) -> Iterator[str]:
    """The body of the function that runs a graph, without comments, up to its return."""
    body = source[source.rindex("async_compile.wait(globals())") :]
    for line in body[body.index("args.clear()") :].splitlines()[1:]:
        text = line.split("#")[0].strip()
        if text.startswith("return"):
            return
        yield text


@dataclass(slots=True)
class _Memory:
    """Blocks and the names that they are alive by. `picked`: what is taken from a call's results, by their name."""

    rounded: Callable[[int], int]
    picked: Mapping[str, Sequence[str]]
    uncounted: frozenset[str] = frozenset()
    names: dict[str, set[str]] = field(default_factory=dict)
    block: dict[str, str] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)

    def start(self, given: Mapping[str, tuple[str, int]]) -> None:
        for name, (storage, nbytes) in given.items():
            self.make(name, nbytes, storage)

    def follow(self, line: str, result_nbytes: Mapping[str, int]) -> None:
        """Make and name what a line does."""
        if made := _MADE.match(line):
            self.make(made[1], _strided_nbytes(made[2], made[3], made[4]))
        elif called := _CALLED.match(line):
            # All results of a call are made by it, and live as long as the tuple that holds them.
            for name in self.picked.get(called[1], [called[1]]):
                self.make(name, result_nbytes.get(name, 0))
                self.name(f"{called[1]}.{name}", name)
        elif (renamed := _RENAMED.match(line)) and renamed[2] in self.block:
            self.name(renamed[1], self.block[renamed[2]])

    def delete(self, line: str) -> None:
        """Drop the names that a line deletes."""
        for deleted in _DELETED.findall(line):
            for name in deleted.split(","):
                self.drop(name.strip())

    def live(self) -> int:
        return sum(size for block, size in self.sizes.items() if block not in self.uncounted)

    def make(self, name: str, nbytes: int, block: str | None = None) -> None:
        self.sizes[block or name] = self.rounded(nbytes)
        self.name(name, block or name)

    def name(self, name: str, block: str) -> None:
        self.names.setdefault(block, set()).add(name)
        self.block[name] = block

    def drop(self, name: str) -> None:
        for element in self.picked.get(name, [name]):
            self._drop(f"{name}.{element}")
        self._drop(name)

    def _drop(self, name: str) -> None:
        block = self.block.pop(name, None)
        if block is not None:
            self.names[block].discard(name)
            if not self.names[block]:
                del self.names[block], self.sizes[block]


def _strided_nbytes(sizes_text: str, strides_text: str, dtype: str) -> int:
    """Of sizes and strides as they stand in the code."""
    sizes, strides = (
        [int(number) for number in text.strip("()").split(",") if number.strip()] for text in (sizes_text, strides_text)
    )
    last = -1 if 0 in sizes else sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
    return (last + 1) * int(getattr(torch, dtype).itemsize)
