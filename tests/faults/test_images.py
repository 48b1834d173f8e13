"""Blank and dark images beside others: what a normalization divides by their standard deviation is none of a neighbour.

Maps have no multiple of 128 elements. The reference is eager PyTorch in float64.
"""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fxcompress import ledger

FAST: dict[str, object] = {"inner": "aot_eager", "min_bytes": 0}
NARROW: dict[str, object] = {**FAST, "bits": 4, "operand_bits": 4}
LAYOUTS = pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
SIZES = (12, 9, 11)


class By(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def conv(inputs: int, outputs: int, *, bias: bool = False) -> nn.Module:
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=bias)


def length(x: Tensor) -> Tensor:
    return x * (x.square().mean((1, 2, 3), keepdim=True) + 1e-5).rsqrt()


def deviation(x: Tensor) -> Tensor:
    return (x - x.mean((1, 2, 3), keepdim=True)) / (x.std((1, 2, 3), keepdim=True) + 1e-4)


def tokens(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2)


NORMS: dict[str, Callable[[], nn.Module]] = {
    "one group": lambda: nn.GroupNorm(1, 12),
    "groups": lambda: nn.GroupNorm(4, 12),
    "instance": lambda: nn.InstanceNorm2d(12, affine=True),
    "layer": lambda: nn.LayerNorm(SIZES),
    "length": lambda: By(length),
    "deviation": lambda: By(deviation),
}
BEHIND: dict[str, Callable[[], list[nn.Module]]] = {
    "convolutions": lambda: [conv(12, 12), nn.GELU(), conv(12, 12), nn.GroupNorm(3, 12)],
    "pooling": lambda: [conv(12, 12), nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(12)],
    "flattening": lambda: [conv(12, 3), nn.Flatten(), nn.LayerNorm(297)],
    "a product": lambda: [nn.Flatten(), nn.Linear(1188, 50, bias=False), nn.LayerNorm(50)],
    "upsampling": lambda: [nn.ConvTranspose2d(12, 10, 2, 2, bias=False), nn.InstanceNorm2d(10)],
    "patches": lambda: [nn.Conv2d(12, 20, 3, 3, bias=False), By(tokens), nn.LayerNorm(20)],
}


def gradients(model: nn.Module, call: Callable[[Tensor], Tensor], x: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    out = call(x)
    (out * torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.dtype)).mean().backward()
    return {name: p.grad.double() for name, p in model.named_parameters() if p.grad is not None}


def errors(layers: list[nn.Module], x: Tensor, layout: torch.memory_format, options: dict[str, object]) -> list[float]:
    """Of the whole gradient, and of each convolution's and product's weight; norms' own are noise at 4 bits."""
    model = nn.Sequential(*layers).to(memory_format=layout)
    exact = copy.deepcopy(model).double()
    wanted = gradients(exact, exact, x.double())
    torch._dynamo.reset()
    ledger.clear()
    found = gradients(model, torch.compile(model, backend="actcomp", options=options), x)
    assert any(decision.codec == "affine" for graph in ledger.reports() for decision in graph.decisions)
    wrong = {name: float((wanted[name] - found[name]).norm()) for name in wanted}
    sizes = {name: float(wanted[name].norm()) for name in wanted}
    whole = sum(e**2 for e in wrong.values()) ** 0.5 / sum(e**2 for e in sizes.values()) ** 0.5
    return [whole, *(wrong[name] / sizes[name] for name in wanted if wanted[name].dim() in (2, 4))]


def images(scale: float, layout: torch.memory_format) -> Tensor:
    """A batch of which every third image is `scale` as bright."""
    x = torch.randn(8, 3, *SIZES[1:])
    x[1::3] *= scale
    return x.to(memory_format=layout)


@LAYOUTS
@pytest.mark.parametrize("options, most", [(FAST, 0.07), (NARROW, 0.25)], ids=["defaults", "narrow"])
@pytest.mark.parametrize("activation", [nn.Tanh, nn.GELU])
@pytest.mark.parametrize("name", NORMS)
def test_blank_images_keep_to_themselves(
    name: str, activation: type[nn.Module], options: dict[str, object], most: float, layout: torch.memory_format
) -> None:
    torch.manual_seed(0)
    layers = [conv(3, 12), NORMS[name](), activation(), conv(12, 12), NORMS[name](), activation(), conv(12, 4)]
    assert max(errors(layers, images(0, layout), layout, options)) < most


@LAYOUTS
def test_blank_images_have_no_bias_for_a_gradient(layout: torch.memory_format) -> None:
    """An instance is normalized whatever constant was added to it."""
    torch.manual_seed(0)
    norms = [nn.InstanceNorm2d(12, affine=True) for _ in range(2)]
    layers = [conv(3, 12, bias=True), norms[0], nn.Tanh(), conv(12, 12, bias=True), norms[1], nn.Tanh(), conv(12, 4)]
    assert max(errors(layers, images(0, layout), layout, FAST)) < 0.1


@LAYOUTS
@pytest.mark.parametrize("scale", [0.0, 0.01])
@pytest.mark.parametrize("name", BEHIND)
def test_whatever_normalizes_behind_a_product(name: str, scale: float, layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    layers = [conv(3, 12), nn.GELU(), *BEHIND[name]()]
    assert max(errors(layers, images(scale, layout), layout, NARROW)) < 0.25


def rows_of(layers: list[nn.Module]) -> set[int]:
    torch._dynamo.reset()
    ledger.clear()
    torch.compile(nn.Sequential(*layers), backend="actcomp", options=FAST)(images(1, torch.contiguous_format))
    return {decision.row for graph in ledger.reports() for decision in graph.decisions}


def test_only_images_that_are_normalized_end_groups() -> None:
    plain = [conv(3, 12), nn.GELU(), conv(12, 12), nn.GELU(), conv(12, 4)]
    assert rows_of(plain) == {0}
    batch = [conv(3, 12), nn.BatchNorm2d(12), nn.GELU(), conv(12, 12), nn.BatchNorm2d(12), nn.GELU(), conv(12, 4)]
    assert rows_of(batch) == {0}
    group = [conv(3, 12), nn.GroupNorm(4, 12), nn.GELU(), conv(12, 4)]
    assert rows_of(group) == {0, 1188}
