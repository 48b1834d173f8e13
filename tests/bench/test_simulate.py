"""Whole steps as generated for a GPU, interpreted, against ATen: the code of Inductor, of our kernels and of both."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

pytest.importorskip("triton")

from bench import simulate as subject
from bench.simulate import distance, simulate, traced


class Block(nn.Module):
    """A gated layer between normalizations, and pooled features whose derivative wants a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.last = nn.LayerNorm(64), nn.LayerNorm(64)
        self.up, self.gate, self.down, self.out, self.head = (nn.Linear(64, 64) for _ in range(5))

    def forward(self, x: Tensor) -> Tensor:
        """Return a scalar of `[batch, 64]`."""
        normed = self.norm(x)
        x = x + self.down(F.silu(self.gate(normed)) * self.up(normed))
        return self.head(F.relu(self.out(self.last(x))).square().mean(0)).square().mean()


@pytest.fixture(scope="module")
def step() -> tuple[object, list[object]]:
    torch.manual_seed(0)
    return traced(Block(), [torch.randn(96, 64)], {})


@pytest.mark.parametrize(
    ("variant", "ours", "most"),
    [("plain", 0, 1e-5), ("exact", 0, 1e-5), ("default", 1, 1e-2), ("2 bit", 1, 1e-2), ("2 bit 60%", 0, 1e-2)],
)
def test_a_step_is_what_aten_computes(step: tuple[object, list[object]], variant: str, ours: int, most: float) -> None:
    row = simulate("block", variant, *step)  # type: ignore[arg-type]
    assert not row.error
    assert row.ours >= ours and row.kernels > row.ours
    assert row.loss_error is not None and row.loss_error < 1e-6
    assert row.grad_error is not None and row.grad_error < most


def test_a_wrong_result_shows(step: tuple[object, list[object]]) -> None:
    case = subject.make_case("plain", *step)  # type: ignore[arg-type]
    assert len(case.expected_gradients) == len(case.inputs)
    one = torch.ones(4)
    assert distance([one, None, one.int()], [one, None, one.int()]) == 0
    assert distance([one * 1.5], [one]) == pytest.approx(0.5)
    assert distance([one.int() + 1], [one.int()]) == float("inf")
