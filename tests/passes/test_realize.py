"""The memory model stores and joins pointwise results where Inductor does."""

import pytest
import torch

from fxcompress.passes.join_steps import Step, join_in_a_row, join_side_by_side
from fxcompress.passes.liveness import Machine, find_steps
from fxcompress.passes.merge_sums import find_merged
from fxcompress.passes.phases import phase_of
from fxcompress.testing_graphs import capture


def test_a_residual_stream_is_stored_before_it_has_too_many_terms() -> None:
    """Every branch reads the sum of all before it; if none were stored, all terms would stay alive to the end."""

    def function(x: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
        for weight in weights:
            x = x + ((x * 2.0) @ weight).sin()
        return x

    pair = capture(function, [torch.randn(16, 16, requires_grad=True) for _ in range(9)])
    steps = find_steps(phase_of(pair.fw), Machine(fused=True))
    products = {key for step in steps if step.name.startswith("mm") for key, _ in step.made}
    most = max(len(products & set(step.read)) for step in steps)
    assert 2 <= most <= 5


def test_a_heavy_function_that_is_read_twice_is_stored() -> None:
    def function(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        y = torch.tanh(x)
        return ((y * 3.0) @ weight).sum() + ((y + 1.0) @ weight).sum()

    pair = capture(function, [torch.randn(16, 16, requires_grad=True) for _ in range(2)])
    steps = find_steps(phase_of(pair.fw), Machine(fused=True))
    assert any(step.name.startswith("tanh") for step in steps)


def randoms_stored(packs: bool) -> int:
    """Random numbers in memory where a mask made of them is packed into bytes, or is not."""

    def function(x: torch.Tensor) -> torch.Tensor:
        mask = torch.rand_like(x) > 0.1
        bits = mask.view(-1, 8).to(torch.int32).sum(1)
        return (x * mask).sin() * (bits.sum() if packs else 2.0)

    fw = capture(function, [torch.randn(16, 16, requires_grad=True)]).fw
    return sum("rand" in step.name for step in find_steps(phase_of(fw), Machine(fused=True)))


def test_random_numbers_are_stored_where_their_mask_is_packed() -> None:
    assert randoms_stored(packs=True) == 1
    assert randoms_stored(packs=False) == 0


def step(name: str, made: tuple[int, int], *read: int) -> Step:
    return Step(name, (made,), read, True, 0, over=read, elements=made[1])


def call(name: str, made: tuple[int, int], *read: int) -> Step:
    """A library's kernel."""
    return Step(name, (made,), read, False, 0, over=(), elements=None)


def test_results_of_as_many_elements_with_a_common_operand_come_from_one_kernel() -> None:
    steps = [step("a", (10, 64), 1, 2), call("mm", (11, 64), 10), step("b", (12, 64), 2)]
    joined = join_side_by_side(steps)
    assert [item.name for item in joined] == ["a", "mm"]
    assert joined[0].made == ((10, 64), (12, 64)) and joined[0].read == (1, 2)


def test_nothing_is_joined_without_common_operands_in_other_sizes_or_before_its_operands() -> None:
    apart = [step("a", (10, 64), 1), step("b", (11, 64), 2)]
    sizes = [step("a", (10, 64), 1), step("b", (11, 32), 1)]
    later = [step("a", (10, 64), 1), call("mm", (11, 64), 1), step("b", (12, 64), 1, 11)]
    for steps in (apart, sizes, later):
        assert join_side_by_side(steps) == steps


def test_what_only_its_own_kernel_reads_is_never_stored() -> None:
    inner, outer = step("a", (10, 64), 1), step("b", (11, 64), 10)
    (joined,) = join_side_by_side([inner, outer])
    assert joined.made == ((11, 64),) and joined.read == (1,)
    (kept,) = join_side_by_side([inner, outer], frozenset({10}))
    assert kept.made == ((10, 64), (11, 64))


def test_a_kernel_that_casts_stores_no_wide_result() -> None:
    wide = Step("sum", ((10, 256),), (1,), True, 0, over=(1,), elements=64)
    narrow = Step("cast", ((11, 128),), (2, 10), True, 0, over=(2, 10), elements=64)
    (joined,) = join_side_by_side([wide, narrow])
    assert joined.made == ((11, 128),) and joined.read == (1, 2)
    assert joined.over == (2,), "what only the wide result is computed from is not written over"


def test_loops_between_two_calls_are_one_function() -> None:
    first, second = step("a", (10, 64), 1), step("b", (11, 32), 10)
    library, third = call("mm", (12, 64), 11), step("c", (13, 64), 12)
    joined = join_in_a_row([first, second, library, third])
    assert [item.name for item in joined] == ["a", "mm", "c"]
    assert joined[0].made == ((10, 64), (11, 32)) and joined[0].read == (1, 10)


def test_two_functions_of_one_tensor_stand_side_by_side() -> None:
    def function(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return torch.sin(x) @ weight + (x * 3.0) @ weight

    pair = capture(function, [torch.randn(16, 16, requires_grad=True) for _ in range(2)])
    steps = find_steps(phase_of(pair.fw), Machine(fused=True))
    assert any(len(step.made) == 2 and step.over for step in steps)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_scatter_adds_into_its_constant_and_is_generated_where_no_threads_collide(
    threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The backward of `gather`: zeros, to which the gradients are added."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)

    def function(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        return torch.gather(x, 1, index).exp().sum()

    inputs = [torch.randn(16, 16, requires_grad=True), torch.randint(16, (16, 16))]
    steps = find_steps(phase_of(capture(function, inputs).bw), Machine(fused=True))
    assert all(item.generated for item in steps) is (threads == 1)
    assert not any(item.name.startswith(("full", "new_zeros", "zeros")) for item in steps)


@pytest.mark.parametrize(("read_again", "merged"), [(False, True), (True, False)])
def test_a_product_runs_where_its_only_reader_sums_it(read_again: bool, merged: bool) -> None:
    """Two products are added up: as one `addmm`, no more than one of them ever stands beside the sum."""

    def function(x: torch.Tensor, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        product = x @ first
        total = product + (x @ second).sin() @ second
        return total.sin().sum() + (product.cos().sum() if read_again else 0.0)

    inputs = [torch.randn(16, 16, requires_grad=True) for _ in range(3)]
    phase = phase_of(capture(function, inputs).fw)
    found = {product.name: total.name for product, total in find_merged(phase).items()}
    assert ("mm" in found) is merged
    names = [item.name for item in find_steps(phase, Machine(fused=True))]
    assert ("mm" in names) is not merged
    assert not any(product in names for product in found)
    assert set(found.values()) <= set(names)
