"""What the gradient of a loss begins with, in the graph or outside of it: its error is one of every gradient."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxcompress import ledger
from fxcompress.passes.demand import gradient_nodes
from fxcompress.passes.find_loss_factors import find_loss_factors
from fxcompress.passes.find_saved import find_saved
from fxcompress.passes.logarithms import unmoved
from fxcompress.passes.ops import op_name
from fxcompress.passes.save_predicates import expose_predicates
from fxcompress.testing_graphs import capture

FAST: dict[str, object] = {"inner": "aot_eager", "min_bytes": 0}
LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": F.mse_loss,
    "huber": lambda x, y: F.huber_loss(x, y, delta=10.0),
    "weighted": lambda x, y: ((x - y).square() * y.abs().sigmoid()).mean(),
    "probabilities": lambda x, y: F.binary_cross_entropy_with_logits(x, y.sigmoid()),
    "behind an activation": lambda x, y: (x.tanh() - y).square().mean(),
    "softplus": lambda x, y: F.softplus(x * y.sign() * 8).mean(),
    "margin": lambda x, y: F.soft_margin_loss(x * 8, y.sign()),
    "rows": lambda x, y: (x - y).square().sum(1).add(1e-3).sqrt().mean(),
}


def gradients(name: str, backend: str, options: dict[str, object] | None = None) -> dict[str, Tensor]:
    torch._dynamo.reset()
    ledger.clear()
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 96))
    x, heavy = torch.randn(64, 16), torch.randn(64, 96) / torch.rand(64, 96)
    torch.compile(lambda x: LOSSES[name](net(x), heavy.clamp(-30, 30)), backend=backend, options=options)(x).backward()
    return {name: p.grad for name, p in net.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", LOSSES)
def test_the_whole_gradient_keeps_to_the_width_of_operands(name: str) -> None:
    plain, ours = gradients(name, "aot_eager"), gradients(name, "actcomp", FAST)
    for key, gradient in plain.items():
        assert (ours[key] - gradient).norm() < 0.03 * gradient.norm(), key


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x, w: (x.sin() @ w).tanh().sum(), {"tanh"}),
        (lambda x, w: ((x.sin() @ w).tanh() @ w).square().mean(), {"mm"}),
        (lambda x, w: F.logsigmoid(x.sin() @ w).sum(), {"mm", "getitem"}),
        (lambda x, w: (x.sin() @ w).tanh(), {"tanh"}),
        (lambda x, w: (x.sin() @ w).tanh().softmax(1)[:, :2].sum(), set()),
    ],
)
def test_factors_are_what_stands_between_a_scalar_and_the_last_product(function, expected: set[str]) -> None:
    assert factors(function, torch.randn(16, 16, requires_grad=True)) == expected


PARTS: dict[str, tuple[Callable[..., object], set[str]]] = {
    "a part of it": (lambda x, w: (x.sin() @ w).tanh()[2:, :5], {"tanh"}),
    "scaled and moved": (lambda x, w: ((x.sin() @ w).tanh().mT * 2).reshape(-1), {"tanh"}),
    "gates": (lambda x, w: torch.lerp(x, (x @ w).tanh(), (x @ w.t()).sigmoid()), {"tanh", "sigmoid"}),
    "a bias besides": (lambda x, w: x.sin() * w[0].sigmoid() + w[1], {"sigmoid"}),
    "two": (lambda x, w: ((x.sin() @ w).tanh() * 2, (x.cos() @ w).sigmoid() * 2), {"tanh", "sigmoid"}),
    "one with a way around": (lambda x, w: ((x.sin() @ w).tanh() * 2, x + (x.cos() @ w).sigmoid() * 2), {"tanh"}),
    "one state in two": (lambda x, w: (h := (x.sin() @ w).tanh() * 2, h.sigmoid() * x), {"tanh", "sigmoid"}),
    "a residual": (lambda x, w: x + (x.sin() @ w).tanh() * 2, set()),
    "a product after it": (lambda x, w: (x.sin() @ w).tanh() @ w, set()),
    "a normalization after it": (lambda x, w: F.layer_norm((x.sin() @ w).tanh(), (16,)), set()),
    "a slope of 1 on one side": (lambda x, w: F.silu(x.sin() @ w) * 2, set()),
    "a mask": (lambda x, w: F.layer_norm(x.sin() @ w, (16,)).relu() * 2, set()),
}


@pytest.mark.parametrize("name", PARTS)
def test_of_a_gradient_from_outside_all_must_pass_them(name: str) -> None:
    function, expected = PARTS[name]
    assert factors(function, torch.randn(16, 16, requires_grad=True)) == expected


def factors(function: Callable[..., object], w: Tensor) -> set[str]:
    """Operators whose results, as autograd saves them of `function(x, w)`, are such factors."""
    pair = capture(function, (torch.randn(8, 16, requires_grad=True), w), "default")
    expose_predicates(pair.bw)
    pairs = find_saved(pair.fw, pair.bw, num_fwd_outputs=pair.num_fwd_outputs)
    made = {each.bw: each.fw for each in pairs if each.fw.op != "placeholder"}
    found = find_loss_factors(pair.bw, made.keys(), gradient_nodes(pair.bw, {each.bw for each in pairs}))
    return {op_name(unmoved(made[node])) for node in found}


class Cell(nn.Module):
    """A GRU's step as it is written down, with gates near their bounds."""

    def __init__(self) -> None:
        super().__init__()
        self.gates, self.new = nn.Linear(80, 128), nn.Linear(80, 64)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        z, r = (3 * self.gates(torch.cat((x, h), 1))).sigmoid().chunk(2, 1)
        return torch.lerp(h, (6 * self.new(torch.cat((x, r * h), 1))).tanh(), z)


class Flow(nn.Module):
    """A coupling layer of a normalizing flow: one half is scaled by exponentials of the other's."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 64))

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        scale, shift = self.net(h[:, :32]).chunk(2, 1)
        return torch.cat((h[:, 32:] * (1.5 * scale.tanh()).exp() + shift, h[:, :32]), 1)


def states(part: type[nn.Module], backend: str) -> dict[str, Tensor]:
    """Gradients of a loss outside of a graph that is called eight times."""
    torch._dynamo.reset()
    ledger.clear()
    torch.manual_seed(0)
    cell = part()
    step = torch.compile(cell, backend=backend, options=FAST if backend == "actcomp" else None)
    inputs = torch.randn(8, 64, 16)
    h, aim = torch.randn(64, 64), torch.randn(64, 64)
    for x in inputs:
        h = step(x, h)
    F.mse_loss(h, aim).backward()
    return {name: p.grad for name, p in cell.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("part", [Cell, Flow])
def test_gradients_of_a_part_that_is_called_again_and_again_keep_to_the_width_of_operands(
    part: type[nn.Module],
) -> None:
    plain, ours = states(part, "aot_eager"), states(part, "actcomp")
    for key, gradient in plain.items():
        assert (ours[key] - gradient).norm() < 0.03 * gradient.norm(), key
