"""Signs and distances from zero, against what executed programs give."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fxcompress.passes.find_saved import outputs
from fxcompress.passes.find_signs import find_signs
from fxcompress.testing_graphs import capture, node_values

TERMS: dict[str, Callable[..., torch.Tensor]] = {
    "exp": lambda a, b: a.exp(),
    "abs": lambda a, b: a.abs(),
    "square": lambda a, b: a * a,
    "relu": lambda a, b: a.relu(),
    "root": lambda a, b: a.abs().sqrt(),
    "clamp": lambda a, b: a.clamp_min(0.75),
    "small clamp": lambda a, b: a.clamp_min(1e-4),
    "add": torch.add,
    "mul": torch.mul,
    "divide": lambda a, b: a / (b.abs() + 1),
    "more": lambda a, b: a + 1,
    "eps": lambda a, b: a + 1e-5,
    "mean": lambda a, b: a.mean(1, keepdim=True).expand(a.shape) + 0.0,
    "variance": lambda a, b: a.var(1, keepdim=True).expand(a.shape) + 1e-6,
    "move": lambda a, b: a.t().flip(0).t(),
    "cat": lambda a, b: torch.cat([a, b])[: a.shape[0]],
    "negative": lambda a, b: -a,
    "sine": lambda a, b: a.sin(),
}


TERM = st.tuples(st.sampled_from(sorted(TERMS)), st.integers(0, 9), st.integers(0, 9))


@settings(deadline=None, max_examples=15, derandomize=True)
@given(st.lists(TERM, min_size=1, max_size=6))
def test_signs_and_distances_from_zero_hold_of_executed_values(steps: list[tuple[str, int, int]]) -> None:
    """What is called positive or non-negative is so for every input, zeros and extremes of a code among them."""

    def function(x: torch.Tensor) -> list[torch.Tensor]:
        values = [x * 1]
        for name, left, right in steps:
            values.append(TERMS[name](values[left % len(values)], values[right % len(values)]))
        return [value * 1 for value in values[1:]]

    pair = capture(function, (torch.randn(16, 16, requires_grad=True),), "default")
    tried = [torch.randn(16, 16), torch.zeros(16, 16), -torch.rand(16, 16), torch.randn(16, 16) * 1e-3]
    signs = find_signs(pair.fw.graph)
    for x in tried:
        for node, value in node_values(pair.fw, (x,)).items():
            if node.op == "call_function" and isinstance(value, torch.Tensor):
                assert not signs.is_nonnegative(node) or bool((value >= 0).all()), node
                assert not signs.is_positive(node) or bool((value > 0).all()), node


@pytest.mark.parametrize(
    "function, steady",
    [
        (lambda x: x.square().mean(1), True),
        (lambda x: x.norm(dim=1), True),
        (lambda x: x.view(16, 4, 4).norm(dim=2), False),
        (lambda x: x.abs(), False),
        (lambda x: x.exp(), True),
        (lambda x: x.abs().amin(1), False),
        (lambda x: (x.square().sum(1) + 1e-6).sqrt(), True),
        (lambda x: x.square().sum(1, keepdim=True) * x.abs(), False),
    ],
)
def test_one_element_cannot_bring_near_zero_what_many_make(
    function: Callable[[torch.Tensor], torch.Tensor], steady: bool
) -> None:
    pair = capture(function, (torch.randn(16, 16, requires_grad=True),))
    node = outputs(pair.fw)[0]
    while "detach" in str(node.target):
        node = node.all_input_nodes[0]
    assert find_signs(pair.fw.graph).is_steady(node) == steady
