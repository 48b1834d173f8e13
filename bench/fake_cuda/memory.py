"""Live bytes of a graph for a GPU, replayed from the code that Inductor generated for it.

Every allocation, deletion, view and taken-over buffer of the wrapper is followed in its order, so that what is counted
is what the allocator will be asked for; what libraries need inside their calls is not in the code. Sizes are rounded up
as by the CUDA caching allocator.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch

from bench.fake_cuda.lower import Lowered

BLOCK = 512
"""Bytes that the allocator rounds up to."""
_MADE = re.compile(r"(\w+) = empty_strided_cuda\((.*), torch\.(\w+)\)$")
_RENAMED = re.compile(r"(\w+) = (?:reinterpret_tensor\()?([A-Za-z_]\w*)(?:\)|, .*|)(?:; *|$)")
_CALLED = re.compile(r"(\w+) = (?:torch\.ops|aten|extern_kernels)\.")
_PICKED = re.compile(r"(\w+) = (\w+)\[\d+\]$")
_DELETED = re.compile(r"\bdel ([\w, ]+)")


@dataclass(frozen=True, slots=True)
class Moment:
    """Live bytes after one line of the wrapper."""

    nbytes: int
    line: str


def replay(lowered: Lowered, given: Mapping[str, int], uncounted: Iterable[str] = ()) -> list[Moment]:
    """Live bytes after each line.

    Args:
        lowered: a graph for cuda:0.
        given: bytes of the arguments that die with their last reader; the others outlive the step and never count.
        uncounted: names of buffers that never count.
    """
    memory = _Memory(given, frozenset(uncounted))
    return [Moment(memory.follow(line, lowered), line) for line in call_lines(lowered.source)]


def call_lines(source: str) -> Iterator[str]:
    """The body of the function that runs a graph, without comments, up to its return."""
    body = source[source.rindex("async_compile.wait(globals())") :]
    for line in body[body.index("args.clear()") :].splitlines()[1:]:
        text = line.split("#")[0].strip()
        if text.startswith("return"):
            return
        yield text


class _Memory:
    """Blocks and the names that they are alive by."""

    def __init__(self, given: Mapping[str, int], uncounted: frozenset[str]) -> None:
        self._uncounted = uncounted
        self._names: dict[str, set[str]] = {}
        self._block: dict[str, str] = {}
        self._sizes: dict[str, int] = {}
        for name, nbytes in given.items():
            self._make(name, nbytes)

    def follow(self, line: str, lowered: Lowered) -> int:
        """Do what a line does; returns the live bytes."""
        if made := _MADE.match(line):
            self._make(made[1], _strided_nbytes(made[2], made[3]))
        elif _CALLED.match(line) or _PICKED.match(line):
            name = line.split(" = ")[0]
            if name in lowered.graph.name_to_buffer:
                self._make(name, _buffer_nbytes(lowered, name))
        elif (renamed := _RENAMED.match(line)) and renamed[2] in self._block:
            self._name(renamed[1], self._block[renamed[2]])
        for deleted in _DELETED.findall(line):
            for name in deleted.split(","):
                self._drop(name.strip())
        return sum(size for block, size in self._sizes.items() if block not in self._uncounted)

    def _make(self, name: str, nbytes: int) -> None:
        self._sizes[name] = -(-nbytes // BLOCK) * BLOCK
        self._name(name, name)

    def _name(self, name: str, block: str) -> None:
        self._names.setdefault(block, set()).add(name)
        self._block[name] = block

    def _drop(self, name: str) -> None:
        block = self._block.pop(name, None)
        if block is not None:
            self._names[block].discard(name)
            if not self._names[block]:
                del self._names[block], self._sizes[block]


def _strided_nbytes(text: str, dtype: str) -> int:
    """Of `(sizes), (strides)` as they stand in the code."""
    sizes, strides = (
        [int(number) for number in part.split(",") if number.strip()] for part in re.findall(r"\(([\d, ]*)\)", text)
    )
    return _span(sizes, strides) * int(getattr(torch, dtype).itemsize)


def _buffer_nbytes(lowered: Lowered, name: str) -> int:
    """Of what a library returns; 0 for several results, which are counted where they are picked."""
    layout = lowered.graph.name_to_buffer[name].get_output_spec()
    if not hasattr(layout, "size"):
        return 0
    sizes, strides = [int(size) for size in layout.size], [int(stride) for stride in layout.stride]
    return _span(sizes, strides) * int(layout.dtype.itemsize)


def _span(sizes: list[int], strides: list[int]) -> int:
    if 0 in sizes:
        return 0
    return 1 + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
