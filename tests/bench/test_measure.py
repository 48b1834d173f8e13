"""The benchmarks' measurements against cases whose answer is known by construction."""

import math

import pytest
import torch
from torch import Tensor, nn

from bench import measure
from bench.trial import Job

MIB = 2**20


def mebibytes(count: float) -> Tensor:
    """An uninitialised float32 tensor of so many MiB."""
    return torch.empty(int(count * MIB) // 4)


def test_peak_of_hand_made_allocations() -> None:
    def step() -> list[Tensor]:
        first = mebibytes(3)
        second = mebibytes(2)
        del first
        third = mebibytes(4)
        del second, third
        mebibytes(1)
        return []

    memory = measure.peak_bytes(step)
    assert memory == measure.Memory(peak_bytes=6 * MIB, total_peak_bytes=6 * MIB, gradient_bytes=0)


def test_what_lived_before_is_not_counted_and_its_release_is_no_credit() -> None:
    holder = [mebibytes(8)]

    def step() -> list[Tensor]:
        holder.clear()
        mebibytes(1)
        return []

    assert measure.peak_bytes(step).peak_bytes == MIB


def test_gradients_are_left_out_from_their_allocation_on() -> None:
    def step() -> list[Tensor]:
        gradient = mebibytes(2)
        scratch = mebibytes(3)
        del scratch
        return [gradient]

    memory = measure.peak_bytes(step)
    assert memory == measure.Memory(peak_bytes=3 * MIB, total_peak_bytes=5 * MIB, gradient_bytes=2 * MIB)


def test_address_reused_by_a_gradient_counts_before_it_is_one() -> None:
    events = [measure.Allocation(1, 100), measure.Allocation(1, -100), measure.Allocation(1, 70)]
    ignored = measure.final_indices(events, frozenset({1}))
    assert list(measure.live_bytes(events, ignored)) == [100, 0, 0]


def test_peak_is_the_same_every_time() -> None:
    module = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64))
    job = Job(module, (torch.randn(128, 64),), {})
    step = job.gradient_step(lambda x: module(x).square().mean())
    results = {measure.peak_bytes(step) for _ in range(3)}
    assert len(results) == 1


def test_saved_bytes_in_eager_counts_storages_once() -> None:
    weight = torch.randn(64, 64, requires_grad=True)
    x = torch.randn(256, 64)
    hidden = (x @ weight).sigmoid()
    loss = (hidden * hidden.view(256, 64)).sum()
    # sigmoid keeps its result, and the product keeps the same storage twice; x and weight are held by the caller.
    assert measure.saved_bytes(loss, [weight, x]) == 256 * 64 * 4
    assert measure.saved_bytes(loss, []) == 256 * 64 * 4 + 256 * 64 * 4


def test_saved_bytes_of_a_compiled_function_and_after_backward() -> None:
    weight = torch.randn(64, 64, requires_grad=True)
    x = torch.randn(256, 64)

    def function(x: Tensor, weight: Tensor) -> Tensor:
        return (x @ weight).sin().sum()

    torch._dynamo.reset()
    loss = torch.compile(function, backend="aot_eager")(x, weight)
    assert measure.saved_bytes(loss, [weight, x]) == 256 * 64 * 4


def test_saved_bytes_crosses_graph_breaks() -> None:
    def function(x: Tensor) -> Tensor:
        y = x.sin().exp()
        torch._dynamo.graph_break()
        return y.cos().sum()

    torch._dynamo.reset()
    x = torch.randn(100, 100, requires_grad=True)
    loss = torch.compile(function, backend="aot_eager")(x)
    # The first graph saves exp's result, which is its output, or sin's to rebuild it; the second its own input.
    assert measure.saved_bytes(loss, [x]) in (40_000, 80_000)


def test_relative_gradient_error() -> None:
    reference = {"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([[4.0]])}
    moved = {"a": torch.tensor([3.0, 0.5]), "b": torch.tensor([[4.0]])}
    assert measure.rel_grad_error(reference, reference) == 0
    assert measure.rel_grad_error(moved, reference) == pytest.approx(0.1)
    assert math.isnan(measure.rel_grad_error({"a": reference["a"]}, reference))
    assert math.isnan(measure.rel_grad_error({**moved, "b": torch.tensor([[math.nan]])}, reference))


def test_bit_equal_is_strict() -> None:
    one = {"a": torch.ones(3)}
    assert measure.bit_equal(one, {"a": torch.ones(3)})
    assert not measure.bit_equal(one, {"a": torch.ones(3) + 2**-23})
    assert not measure.bit_equal(one, {"b": torch.ones(3)})


def test_step_times_interleave_and_pair() -> None:
    order: list[str] = []
    steps = {name: (lambda name=name: order.append(name)) for name in ("a", "b")}
    seconds = measure.step_times(steps, rounds=3)
    assert order == ["a", "b"] * 4
    assert {name: len(values) for name, values in seconds.items()} == {"a": 3, "b": 3}
    assert measure.paired_ratio([2.0, 30.0, 4.0], [1.0, 10.0, 2.0]) == 2.0
