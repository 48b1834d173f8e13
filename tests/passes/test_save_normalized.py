"""Channels of unlike scale that lie side by side in memory: each keeps its own share of the gradient."""

import functools
from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor, nn

from fxcompress import ledger

FAST: dict[str, object] = {"inner": "aot_eager", "min_bytes": 0}
CHANNELS = 24


class LayerNorm2d(nn.Module):
    """A layer normalization over channels, as ConvNeXt has it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class OfRoots(nn.Module):
    """Looks like a normalization, but for a learned factor that may be zero."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.arange(0.0, 24)[:, None, None])

    def forward(self, x: Tensor) -> Tensor:
        return (x - x.mean((0, 2, 3), keepdim=True)) * self.factor.sqrt()


class Spelled(nn.Module):
    """A batch normalization that a user wrote."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        mean, std = x.mean((0, 2, 3), keepdim=True), x.std((0, 2, 3), keepdim=True)
        return self.weight * ((x - mean) / (std + 1e-3))


NORMS: dict[str, Callable[[int], nn.Module]] = {
    "batch": nn.BatchNorm2d,
    "instance": lambda channels: nn.InstanceNorm2d(channels, affine=True),
    "group": lambda channels: nn.GroupNorm(channels // 4, channels),
    "layer": LayerNorm2d,
    "spelled": Spelled,
}


def network(norm: Callable[[int], nn.Module], spread: float, layout: torch.memory_format) -> nn.Sequential:
    """Two convolutions with a norm behind each, whose channels' scales differ by `spread`, every fifth dead."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, CHANNELS, 3, padding=1, bias=False),
        norm(CHANNELS),
        nn.ReLU(),
        nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False),
        norm(CHANNELS),
        nn.SiLU(),
        nn.Conv2d(CHANNELS, 4, 1),
    )
    scales = torch.logspace(0, -spread, CHANNELS)[torch.randperm(CHANNELS)]
    scales[::5] = 0
    with torch.no_grad():
        for i in (0, 3):
            model[i].weight.mul_(scales[:, None, None, None])
    return model.to(memory_format=layout)


def gradients(
    model: nn.Module,
    x: Tensor,
    backend: str,
    options: Mapping[str, object] | None = None,
    *,
    dynamic: bool | None = None,
    fresh: bool = True,
) -> dict[str, Tensor]:
    if fresh:
        torch._dynamo.reset()
        ledger.clear()
    out = torch.compile(model, backend=backend, options=options and dict(options), dynamic=dynamic)(x)
    target = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    model.zero_grad()
    (out * target).mean().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def error(plain: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> float:
    total = sum(float(grad.square().sum()) for grad in plain.values())
    return float(sum(float((plain[name] - ours[name]).square().sum()) for name in plain) / total) ** 0.5


def maps(layout: torch.memory_format, size: int = 14) -> Tensor:
    return torch.randn(4, 3, size, size).to(memory_format=layout)


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("name", NORMS)
def test_channels_of_unlike_scale_keep_their_gradients(name: str, layout: torch.memory_format) -> None:
    model, x = network(NORMS[name], 2, layout), maps(layout, 7)
    plain = gradients(model, x, "aot_eager")
    assert error(plain, gradients(model, x, "actcomp", FAST)) < 0.1


@pytest.mark.parametrize(
    "name, layout",
    [
        ("batch", torch.channels_last),
        ("batch", torch.contiguous_format),
        ("instance", torch.contiguous_format),
        ("group", torch.channels_last),
        ("layer", torch.contiguous_format),
        ("spelled", torch.channels_last),
    ],
)
def test_channels_of_unlike_scale_of_any_size(name: str, layout: torch.memory_format) -> None:
    model, sizes = network(NORMS[name], 2, layout), ((4, 15, 14), (3, 8, 17))
    inputs = [torch.randn(n, 3, height, width).to(memory_format=layout) for n, height, width in sizes]
    compile_ = functools.partial(gradients, model, dynamic=True)
    plain = [compile_(x, "aot_eager") for x in inputs]
    found = [compile_(x, "actcomp", FAST, fresh=x is inputs[0]) for x in inputs]
    (plan,) = ledger.reports()
    lossy = [d.tensor for d in plan.decisions if d.codec == "affine"]
    assert sum("normalized" in tensor.name and "s" in str(tensor.shape) for tensor in lossy) == 2
    for exact, stored in zip(plain, found, strict=True):
        assert error(exact, stored) < 0.1


@pytest.mark.parametrize("name", ["batch", "group"])
def test_low_precision_statistics(name: str) -> None:
    """CPU kernels return statistics in fp32 where their fake ones say bf16."""
    model, x = network(NORMS[name], 2, torch.channels_last), maps(torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        plain = gradients(model, x, "aot_eager")
        assert error(plain, gradients(model, x, "actcomp", FAST)) < 0.1


def test_columns_of_a_table() -> None:
    """`BatchNorm1d` on raw columns: a year beside a share."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm1d(20), nn.Linear(20, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 4))
    with torch.no_grad():
        model[1].weight[::7] = 0
        model[1].bias[::7] = 0
    x = torch.randn(256, 20) * torch.logspace(-2, 2, 20) + torch.logspace(3, -2, 20)
    plain = gradients(model, x, "aot_eager")
    assert error(plain, gradients(model, x, "actcomp", FAST)) < 0.1


def test_frozen_statistics() -> None:
    model, x = network(nn.BatchNorm2d, 2, torch.channels_last), maps(torch.channels_last)
    norms = [module for module in model if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        model(x)
    for norm in norms:
        norm.eval()
    plain = gradients(model, x, "aot_eager")
    ours = gradients(model, x, "actcomp", FAST)
    for name in ("1.weight", "4.weight"):
        assert (plain[name] - ours[name]).norm() < 0.4 * plain[name].norm()


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("name", NORMS)
def test_what_is_rebuilt_is_the_value_to_rounding(name: str, layout: torch.memory_format) -> None:
    model, x = network(NORMS[name], 1, layout), maps(layout, 7)
    plain = gradients(model, x, "aot_eager")
    unchanged = gradients(model, x, "actcomp", {**FAST, "limit": 0, "disable_passes": ["restore_kept"]})
    assert normalized(), "nothing was saved normalized"
    assert error(plain, unchanged) < 1e-4


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("options", [{"limit": 0}, {"budget": "200%"}, {"lossy": False}])
def test_what_is_kept_is_the_value_itself(name: str, options: dict[str, object]) -> None:
    model, x = network(NORMS[name], 1, torch.channels_last), maps(torch.channels_last)
    plain = gradients(model, x, "aot_eager")
    ours = gradients(model, x, "actcomp", {**FAST, **options})
    kept = all(d.codec in ("keep", "shared", "valueset") for graph in ledger.reports() for d in graph.decisions)
    assert kept and all(torch.equal(plain[name], ours[name]) for name in plain)


def normalized() -> list[str]:
    return [
        decision.tensor.op
        for graph in ledger.reports()
        for decision in graph.decisions
        if decision.tensor.name.startswith("actcomp_normalized_")
    ]


@pytest.mark.parametrize(
    ("size", "layout", "count"),
    [(16, torch.contiguous_format, 0), (14, torch.contiguous_format, 2), (16, torch.channels_last, 2)],
)
def test_only_where_channels_share_a_group(size: int, layout: torch.memory_format, count: int) -> None:
    gradients(network(nn.BatchNorm2d, 0, layout), maps(layout, size), "actcomp", FAST)
    assert len(normalized()) == count


def test_a_learned_factor_is_no_deviation() -> None:
    gradients(network(lambda _: OfRoots(), 0, torch.channels_last), maps(torch.channels_last), "actcomp", FAST)
    assert not normalized()


def test_no_byte_more_is_saved_but_for_statistics() -> None:
    """16 x 16 contiguous maps fill whole groups, so that nothing is saved normalized there."""
    saved = []
    for layout in (torch.contiguous_format, torch.channels_last):
        gradients(network(nn.BatchNorm2d, 0, layout), maps(layout, 16), "actcomp", FAST)
        saved.append(sum(graph.saved_bytes_after for graph in ledger.reports()))
    assert saved[1] - saved[0] <= 4 * CHANNELS * 4


def test_rules_and_reports_speak_of_the_value_itself() -> None:
    rules = [{"op": "convolution", "bits": 8}]
    x = maps(torch.channels_last)
    gradients(network(nn.BatchNorm2d, 0, torch.channels_last), x, "actcomp", {**FAST, "rules": rules})
    assert normalized() == ["aten.convolution"] * 2
    widths = {
        dict(decision.params)["bits"]
        for graph in ledger.reports()
        for decision in graph.decisions
        if decision.tensor.name in ("actcomp_normalized_convolution", "actcomp_normalized_convolution_1")
    }
    assert widths == {8}


def test_a_plan_replays(tmp_path: object) -> None:
    path = f"{tmp_path}/plan.json"
    model, x = network(nn.BatchNorm2d, 1, torch.channels_last), maps(torch.channels_last)
    first = gradients(model, x, "actcomp", {**FAST, "save_plan": path})
    again = gradients(model, x, "actcomp", {"inner": "aot_eager", "plan": path})
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_a_changing_batch_size() -> None:
    model = network(NORMS["group"], 1, torch.channels_last)
    compiled = torch.compile(model, backend="actcomp", options=FAST, dynamic=True)
    for batch in (4, 6):
        x = torch.randn(batch, 3, 14, 14).to(memory_format=torch.channels_last)
        model.zero_grad()
        compiled(x).square().mean().backward()
        ours = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        model.zero_grad()
        model(x).square().mean().backward()
        plain = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        assert error(plain, ours) < 0.15


@pytest.mark.slow
@pytest.mark.parametrize("name", ["batch", "group"])
def test_normalizations_taken_apart(name: str) -> None:
    """Inductor's own decompositions, where the backward rebuilds what convolutions read of it."""
    model, x = network(NORMS[name], 2, torch.channels_last), maps(torch.channels_last)
    plain = gradients(model, x, "inductor")
    assert error(plain, gradients(model, x, "actcomp", {"min_bytes": 0})) < 0.1
    assert normalized() == ["aten.convolution"] * 2
