"""Slopes of saturated activations are small differences: lossy results must not swallow them."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fxcompress import ledger
from fxcompress.trace import explain

Function = Callable[[Tensor], Tensor]
FAST: dict[str, object] = {"inner": "aot_eager", "min_bytes": 0}
ACTIVATIONS = {"tanh": torch.tanh, "sigmoid": torch.sigmoid}


class Generator(nn.Module):
    """Pixels near the one bound or the other, judged by a critic that learns nothing."""

    def __init__(self, activation: Function, learns: bool) -> None:
        super().__init__()
        self.hidden, self.out, self.activation = nn.Linear(16, 64), nn.Linear(64, 96), activation
        self.critic = nn.Linear(96, 32).requires_grad_(learns)

    def forward(self, x: Tensor) -> Tensor:
        bounds = torch.where(torch.arange(96) % 3 == 0, 4, -4)
        pixels = self.activation(self.out(torch.relu(self.hidden(x))) + bounds)
        return torch.relu(self.critic(pixels)).sum(1).mean()


def gradients(
    activation: Function, backend: str, options: dict[str, object] | None = None, learns: bool = False
) -> Tensor:
    torch._dynamo.reset()
    ledger.clear()
    torch.manual_seed(0)
    model, x = Generator(activation, learns), torch.randn(128, 16)
    torch.compile(model, backend=backend, options=options)(x).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def encoded() -> list[tuple[str, int, str]]:
    """Name, width and need class of lossy tensors with rows of 96."""
    lossy = [d for graph in ledger.reports() for d in graph.decisions if d.codec == "affine"]
    return [(d.tensor.name, int(dict(d.params)["bits"]), d.tensor.need) for d in lossy if d.tensor.shape[-1] == 96]


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_a_generator_with_saturated_pixels_keeps_its_gradient(name: str) -> None:
    plain, ours = gradients(ACTIVATIONS[name], "aot_eager"), gradients(ACTIVATIONS[name], "actcomp", FAST)
    assert (ours - plain).norm() < 0.1 * plain.norm()


@pytest.mark.slow
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_so_it_does_over_inductor(name: str) -> None:
    plain, ours = (
        gradients(ACTIVATIONS[name], "inductor"),
        gradients(ACTIVATIONS[name], "actcomp", {"min_bytes": 0}),
    )
    assert (ours - plain).norm() < 0.1 * plain.norm()


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_slope_is_saved_in_place_of_the_result(name: str) -> None:
    gradients(ACTIVATIONS[name], "actcomp", FAST)
    (tensor,) = encoded()
    assert tensor == (f"actcomp_slope_{name}_backward_default", 4, "derivative")


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_operand_stays(name: str) -> None:
    gradients(ACTIVATIONS[name], "actcomp", FAST, learns=True)
    (tensor,) = encoded()
    assert "slope" not in tensor[0]


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_exact_codecs_leave_the_derivative_to_its_operator(name: str) -> None:
    plain = gradients(ACTIVATIONS[name], "aot_eager")
    assert torch.equal(plain, gradients(ACTIVATIONS[name], "actcomp", {**FAST, "lossy": False}))


class Autocast(nn.Module):
    """A generator in bf16."""

    def __init__(self, activation: Function) -> None:
        super().__init__()
        self.generator = Generator(activation, learns=False)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return self.generator(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_a_slope_that_inductor_computes_wider_is_saved_in_the_dtype_of_the_result(name: str) -> None:
    plan = explain(lambda: (Autocast(ACTIVATIONS[name]), (torch.randn(128, 16),)), (), {"min_bytes": 0})
    slopes = [d.tensor.dtype for graph in plan.graphs for d in graph.decisions if "slope" in d.tensor.name]
    assert slopes == ["bfloat16"]
