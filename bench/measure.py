"""What the benchmarks measure, each number defined once.

saved bytes: distinct storages that the autograd graph of a loss keeps; parameters, buffers and inputs are left out.
peak bytes: the largest sum of bytes alive at one moment during forward and backward, of allocations made in that step.
The gradients of parameters that backward returns are left out from their allocation on, and reported separately. What
lived before the step (parameters, optimizer state, the batch) is never counted. The allocator's own events are summed,
so that the number is exact and, for a deterministic program, repeats.
gradient error: ‖g − g*‖ / ‖g*‖ over all parameters together.
"""

import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Memory:
    """Allocator bytes of one training step."""

    peak_bytes: int
    """Without gradients."""
    total_peak_bytes: int
    """With gradients."""
    gradient_bytes: int
    """Distinct storages of the parameters' gradients that the step made."""


@dataclass(frozen=True, slots=True)
class Allocation:
    """One allocator event: `nbytes` is positive for an allocation, negative for a release."""

    pointer: int
    nbytes: int


def saved_bytes(loss: Tensor, held: Iterable[Tensor]) -> int:
    """Bytes of the distinct storages that backward of `loss` keeps alive, those of `held` left out."""
    held_storages = {_storage(tensor) for tensor in held}
    sizes = {_storage(t): t.untyped_storage().nbytes() for t in saved_tensors(loss) if t.layout == torch.strided}
    return sum(nbytes for storage, nbytes in sizes.items() if storage not in held_storages)


def saved_tensors(loss: Tensor) -> Iterator[Tensor]:
    """Yield every tensor that a node of the autograd graph of `loss` keeps, storages repeated as they are found."""
    pending: list[Any] = [loss.grad_fn]
    seen: set[Any] = set()
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        pending += [parent for parent, _ in node.next_functions]
        yield from _saved_by(node)


def peak_bytes(step: Callable[[], Sequence[Tensor]], device: torch.device = CPU) -> Memory:
    """Run `step` (forward and backward) once and return its memory; what it returns are the parameters' gradients.

    It should take them from `torch.autograd.grad`: `.backward()` may copy a gradient into `.grad`, and then the storage
    that is a gradient in the end is not the one that backward made. Compile before: a compilation allocates too.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        returned = step()
    gradients = {_storage(gradient): gradient.untyped_storage().nbytes() for gradient in returned}
    # Empty gradients have no storage, and every one of them would stand for address 0.
    gradients.pop(0, None)
    allocations = list(_allocations(profiler, device))
    total = max(live_bytes(allocations, frozenset()), default=0)
    if device.type == "cuda":
        total = torch.cuda.max_memory_allocated(device) - before
    peak = max(live_bytes(allocations, final_indices(allocations, frozenset(gradients))), default=0)
    return Memory(peak, total, sum(gradients.values()))


def live_bytes(allocations: Sequence[Allocation], ignored: frozenset[int]) -> Iterator[int]:
    """Yield the bytes alive after each event, allocations at the indices `ignored` left out.

    Releases of what was allocated before the first event are left out too.
    """
    alive: dict[int, int] = {}
    total = 0
    for index, event in enumerate(allocations):
        if event.nbytes > 0:
            alive[event.pointer] = 0 if index in ignored else event.nbytes
            total += alive[event.pointer]
        else:
            total -= alive.pop(event.pointer, 0)
        yield total


def final_indices(allocations: Sequence[Allocation], pointers: frozenset[int]) -> frozenset[int]:
    """Indices of the last allocation at each of `pointers`: an address is reused, and the last owner is alive."""
    last = {event.pointer: i for i, event in enumerate(allocations) if event.nbytes > 0 and event.pointer in pointers}
    return frozenset(last.values())


def rel_grad_error(gradients: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> float:
    """‖g − g*‖ / ‖g*‖ over all tensors together, in float64; NaN if a name or a value is missing.

    Both map parameter names to gradients.
    """
    if gradients.keys() != reference.keys():
        return math.nan
    squared_error = sum(float((gradients[n].double() - reference[n].double()).square().sum()) for n in reference)
    squared_norm = sum(float(reference[n].double().square().sum()) for n in reference)
    return math.sqrt(squared_error) / math.sqrt(squared_norm) if squared_norm else math.nan


def bit_equal(gradients: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> bool:
    """Whether the same names carry `torch.equal` gradients."""
    return gradients.keys() == reference.keys() and all(torch.equal(gradients[n], reference[n]) for n in reference)


def step_times(steps: Mapping[str, Callable[[], None]], *, rounds: int = 7) -> dict[str, list[float]]:
    """Seconds of each step in each round; rounds go A, B, C, A, B, C, … so that machine noise hits all alike.

    Each step runs once before: what it shares with others, the kernels of codecs, a later compilation may have dropped.
    """
    for step in steps.values():
        step()
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            seconds[name].append(timed(step))
    return seconds


def paired_ratio(seconds: Sequence[float], reference: Sequence[float]) -> float:
    """Median over rounds of the ratio within one round."""
    return statistics.median(a / b for a, b in zip(seconds, reference, strict=True))


def timed(step: Callable[[], None]) -> float:
    """Seconds that `step` takes, device work included."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _saved_by(node: Any) -> Iterator[Tensor]:
    # Compiled functions and custom functions keep `saved_tensors`; those exempt from version checks lie beside it.
    yield from _tensors(getattr(node, "saved_tensors", ()))
    yield from _tensors(getattr(node, "_tensors_no_vc_check", ()))
    for name in dir(node):
        if name.startswith("_saved_"):
            yield from _tensors(getattr(node, name))


def _tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _tensors(item)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _allocations(profiler: profile, device: torch.device) -> Iterator[Allocation]:
    """Allocator events of one device in time order. Only the event tree states addresses."""
    assert profiler.profiler is not None and profiler.profiler.kineto_results is not None
    pending = list(profiler.profiler.kineto_results.experimental_event_tree())
    events: list[tuple[int, int, int]] = []
    while pending:
        event = pending.pop()
        pending += event.children
        fields: Any = event.extra_fields
        if event.tag.name == "Allocation" and fields.device.type == device.type:
            events.append((event.start_time_ns, fields.ptr, fields.alloc_size))
    # Equal times keep no order; a release sorts before an allocation, which is the order in which an address is reused.
    for _, pointer, nbytes in sorted(events, key=lambda e: (e[0], e[2] > 0)):
        yield Allocation(pointer, nbytes)
