"""Mesa's running ranges in a compiled model: captured per save, checkpointed apart, for any batch."""

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from bench.models.digits_nets import Encoder
from fxcompress import ledger, ranges
from fxcompress.errors import OptionError
from fxcompress.options import Options, from_mapping

OPTIONS = {"preset": "mesa", "stats": "ema", "min_bytes": 64, "inner": "aot_eager"}


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    ledger.clear()
    ranges.clear()
    torch._dynamo.reset()
    yield
    ranges.clear()


def net() -> nn.Module:
    torch.manual_seed(0)
    return Encoder(width=32, heads=2, dropout=0.0)


def gradient(loss: Tensor, model: nn.Module, *, again: bool = False) -> Tensor:
    found = torch.autograd.grad(loss, list(model.parameters()), retain_graph=again)
    return torch.cat([part.flatten() for part in found])


def run(model: nn.Module, compiled, x: Tensor) -> Tensor:
    return gradient(compiled(x).square().mean(), model)


@pytest.mark.parametrize("inner", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_the_ranges_of_a_forward_are_those_that_its_backward_reads(inner: str) -> None:
    model, x = net(), torch.randn(4, 16, 32, generator=torch.Generator().manual_seed(1))
    plain = run(model, model, x)
    compiled = torch.compile(model, backend="actcomp", options={**OPTIONS, "inner": inner})
    keys = list(model.state_dict())
    first, second = compiled(x).square().mean(), compiled(5 * x).square().mean()
    assert {d.codec for d in ledger.reports()[0].decisions if d.tensor.need == "attention"} >= {"running"}
    one = gradient(first, model, again=True)
    assert torch.equal(gradient(first, model), one)
    assert (one - plain).norm() < 0.02 * plain.norm()
    ranges.clear()
    assert torch.equal(run(model, compiled, x), one)
    gradient(second, model)
    assert list(model.state_dict()) == keys and ranges.state_dict()


def test_a_checkpoint_continues_alike_and_nothing_is_compiled_again() -> None:
    model = net()
    batches = [scale * torch.randn(4, 16, 32) for scale in (1.0, 2.0, 3.0)]
    compiled = torch.compile(model, backend="actcomp", options=OPTIONS)
    for x in batches:
        run(model, compiled, x)
    graphs = counters["stats"]["unique_graphs"]
    saved = copy.deepcopy({"model": model.state_dict(), "ranges": ranges.state_dict()})
    expected = run(model, compiled, batches[0])
    ranges.clear()
    fresh = run(model, compiled, batches[0])
    ranges.load_state_dict(saved["ranges"])
    assert torch.equal(run(model, compiled, batches[0]), expected) and not torch.equal(fresh, expected)
    assert counters["stats"]["unique_graphs"] == graphs


def test_another_batch_size_moves_the_same_ranges() -> None:
    model = net()
    compiled = torch.compile(model, backend="actcomp", options=OPTIONS, dynamic=True)
    run(model, compiled, torch.randn(4, 16, 32))
    known = ranges.state_dict()
    run(model, compiled, torch.randn(7, 16, 32))
    moved = ranges.state_dict()
    assert moved.keys() == known.keys()
    assert all(moved[key].shape == known[key].shape and not torch.equal(moved[key], known[key]) for key in known)


def test_where_the_option_has_no_meaning() -> None:
    assert from_mapping({"preset": "mesa", "stats": "ema"}).stats == "ema"
    for wrong in ({"stats": "ema"}, {"stats": "ema", "group": "head", "mode": "reduce-overhead"}):
        with pytest.raises(OptionError, match="conflict"):
            Options(**wrong)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="max_error"):
        Options(stats="ema", group="head", max_error=0.1)
