"""Rows that run on across symbolic sizes: where they are worth it, and what dynamic maps, sequences and masks store."""

from collections.abc import Callable, Sequence
from itertools import chain

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fxcompress import actcomp, codecs, ledger, plan_io
from fxcompress.codecs.order import memory_order
from fxcompress.passes.fill_rows import encoded_nbytes, order_of_row
from fxcompress.plan import GraphPlan


class Maps(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24)
        self.second, self.last = nn.Conv2d(24, 12, 3, stride=2), nn.Conv2d(12, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.gelu(self.second(self.norm(self.first(x)).relu()))).square().mean()


class Sound(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Conv1d(1, 20, 9), nn.GroupNorm(4, 20), nn.Conv1d(20, 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.dropout(F.gelu(self.norm(self.first(x))), 0.1)).abs().mean()


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.project, self.last = nn.Embedding(50, 32), nn.Linear(32, 96), nn.Linear(32, 8)

    def forward(self, index: Tensor) -> Tensor:
        batch, length = index.shape
        q, k, v = self.project(self.embed(index)).view(batch, length, 3, 2, 16).permute(2, 0, 3, 1, 4)
        causal = torch.ones(length, length, dtype=torch.bool).tril()
        weights = F.dropout((q @ k.mT / 4).masked_fill(~causal, -torch.inf).softmax(-1), 0.1)
        return self.last((weights @ v).transpose(1, 2).flatten(2)).square().mean()


Make = Callable[[], tuple[nn.Module, list[Tensor]]]


def maps() -> tuple[nn.Module, list[Tensor]]:
    return Maps(), [torch.randn(4, 3, height, width) for height, width in ((21, 33), (32, 32), (16, 40), (47, 29))]


def sound() -> tuple[nn.Module, list[Tensor]]:
    return Sound(), [torch.randn(3, 1, length) for length in (700, 520, 136, 1033)]


def attention() -> tuple[nn.Module, list[Tensor]]:
    return Attention(), [torch.randint(50, (2, length)) for length in (48, 64, 33, 97)]


def steps(make: Make, backend: object) -> list[list[Tensor]]:
    """The gradients of each size."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    model, inputs = make()
    compiled = torch.compile(model, backend=backend, dynamic=True)  # type: ignore[call-overload]
    found = []
    for x in inputs:
        model.zero_grad()
        compiled(x).backward()
        found.append([parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None])
    return found


def ours(make: Make, **options: object) -> tuple[list[list[Tensor]], Sequence[GraphPlan]]:
    ledger.clear()
    stated = {"inner": "aot_eager", **({} if "plan" in options else {"min_bytes": 1024}), **options}
    found = steps(make, lambda gm, inputs: actcomp(gm, inputs, options=stated))
    return found, ledger.reports()


ALL = pytest.mark.parametrize("make", [maps, sound, attention])


@ALL
def test_one_compile_stores_all_sizes_in_few_bits(make: Make) -> None:
    found, plans = ours(make)
    assert len(plans) == 1, "every size was compiled for anew"
    symbolic = [d for d in plans[0].decisions if any(isinstance(size, str) for size in d.tensor.shape)]
    large = [d for d in symbolic if d.tensor.storage_nbytes > 4096 and not d.tensor.refusal and d.codec != "shared"]
    assert large and all(d.codec != "keep" for d in large), [(d.tensor.name, d.reason) for d in large]
    assert sum(d.nbytes for d in large) < 0.4 * sum(d.tensor.storage_nbytes for d in large)
    for exact, stored in zip(steps(make, "aot_eager"), found, strict=True):
        wrong = sum(float((a - b).square().sum()) for a, b in zip(exact, stored, strict=True))
        assert wrong**0.5 < 0.05 * sum(float(a.square().sum()) for a in exact) ** 0.5


@ALL
def test_exact_codecs_change_no_bit(make: Make) -> None:
    found, plans = ours(make, lossy=False)
    assert any(d.codec == "valueset" for d in plans[0].decisions) or make is maps, "without us it keeps no mask"
    for exact, stored in zip(steps(make, "aot_eager"), found, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(exact, stored, strict=True))


def test_a_plan_states_such_rows_and_is_replayed(tmp_path) -> None:
    found, plans = ours(maps)
    file = tmp_path / "plan.json"
    file.write_text(plan_io.dumps(ledger.make_plan(plans, _options())))
    assert any(d.row == 128 for d in plans[0].decisions)
    again, replayed = ours(maps, plan=str(file))
    assert replayed[0].decisions == plans[0].decisions
    assert all(torch.equal(a, b) for a, b in zip(*(chain.from_iterable(each) for each in (found, again)), strict=True))


def _options():
    from fxcompress import Options

    return Options(inner="aot_eager", min_bytes=1024)


def test_rows_of_a_plan_are_those_of_dimensions_where_there_are_some() -> None:
    order = memory_order(torch.randn(4, 6, 8))
    assert order is not None
    assert order_of_row(order, 0) == order
    assert order_of_row(order, 48) == order.ended_at(48)
    assert order_of_row(order, 128) is None, "rows of a static tensor need not run on: it is one"
    ended = order.ended_at(8)
    assert ended is not None
    filled = order_of_row(ended, 128)
    assert filled is not None and filled.filled == (4, 6, 8) and filled.lead == (3,)
    codec = codecs.make("affine", bits=4)
    assert encoded_nbytes(codec, filled, torch.float32) == 3 * (64 + 4)
