"""The number of chunks under a budget: least modelled time among those that fit, kept by the plan file."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fxcompress
from fxcompress import chunk_to_budget as subject
from fxcompress import replayed_peak
from fxcompress.options import Options
from fxcompress.passes.chunk_counts import counts
from fxcompress.plan import GraphPlan
from fxcompress.report.text import logits
from fxcompress.trace import explain

WORDS, WIDTH, TOKENS = 8192, 64, 1024


class Model(nn.Module):
    """Layers whose saved tensors are as many bytes as its logits."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, WIDTH)
        self.layers = nn.ModuleList(nn.Linear(WIDTH, 2048) for _ in range(2))
        self.back = nn.ModuleList(nn.Linear(2048, WIDTH) for _ in range(2))
        self.head = nn.Linear(WIDTH, WORDS, bias=False)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        h = self.embedding(x)
        for up, down in zip(self.layers, self.back, strict=True):
            h = h + down(F.gelu(up(h)))
        return F.cross_entropy(self.head(h), y)


def case() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    return Model(), (torch.randint(0, WORDS, (TOKENS,)), torch.randint(0, WORDS, (TOKENS,)))


def planned(**options: Any) -> GraphPlan:
    (graph,) = explain(case, options=Options(**options)).graphs
    return graph


@pytest.mark.parametrize("inner, most, least", [("aot_eager", 100, 30), ("inductor", 200, 45)])
def test_a_loose_budget_leaves_logits_whole_and_a_tight_one_chunks_them(inner: str, most: int, least: int) -> None:
    """A compiled step's own peak, of which shares are, is below what the memory model says of logits and their loss."""
    loose = planned(budget=f"{most}%", inner=inner)
    assert (loose.loss.chunks, loose.loss.reason, loose.loss.extra_s) == (0, "the budget is met without", 0)
    assert "whole, the budget is met without" in logits(loose.loss)
    with pytest.raises(Exception, match="lowest predicted peak"):
        planned(budget=f"{least}%", inner=inner, loss_chunks=0)
    tight = planned(budget=f"{least}%", inner=inner)
    assert tight.loss.chunks >= 2 and tight.loss.extra_s > 0
    assert tight.peak_after.peak_bytes <= tight.fits[0].limit_bytes == int(tight.peak_before.peak_bytes * least / 100)
    assert f"{1e3 * tight.loss.extra_s:.3g} ms longer than whole" in logits(tight.loss)


@pytest.mark.parametrize("budget", ["70%", "30%"])
def test_no_other_number_that_fits_takes_less_modelled_time(budget: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All numbers are judged, where the search ends when more chunks take more time."""
    every: list[Any] = []

    def judge_all(judge: Any, numbers: tuple[int, ...]) -> Any:
        every.extend(judge.at(number) for number in numbers)
        return iter(every)

    chosen = planned(budget=budget, inner="aot_eager").loss.chunks
    monkeypatch.setattr(subject, "_judge", judge_all)
    assert planned(budget=budget, inner="aot_eager").loss.chunks == chosen
    assert [judged.loss.decision.chunks for judged in every] == [0, 2, 4, 8, 16, 32]
    keys = {judged.loss.decision.chunks: judged.key() for judged in every}
    assert keys[chosen] == min(keys.values()) and not keys[chosen][0]
    lowest = [judged.ranking.cuts.ranked[-1].lowest_peak_bytes for judged in every]
    assert lowest[0] > lowest[2]


@pytest.mark.parametrize("budget, noteworthy, tried", [("60%", 1.0, [2]), ("60%", 0.0, [2, 0]), ("100%", 0.0, [2, 0])])
def test_whole_logits_come_last_on_large_graphs_if_chunks_take_time(
    budget: str, noteworthy: float, tried: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers: list[int] = []

    def at(judge: Any, number: int, below_s: float = float("inf")) -> Any:
        numbers.append(number)
        return judge_at(judge, number, below_s)

    judge_at = subject._Judge.at
    expected = planned(budget=budget, inner="aot_eager").loss.chunks
    monkeypatch.setattr(subject._Judge, "at", at)
    monkeypatch.setattr(subject, "MOST_NODES", 10)
    monkeypatch.setattr(subject, "NOTEWORTHY", noteworthy)
    monkeypatch.setattr(subject, "_lacks_memory_for_logits", lambda *args: False)
    chosen = planned(budget=budget, inner="aot_eager").loss.chunks
    assert numbers == tried
    assert chosen == (expected if 0 in tried and expected in tried else 2)


def test_pytorchs_pair_is_not_extracted_where_it_cannot_be_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    def extracted(*args: Any) -> None:
        raise AssertionError("a pair was extracted")

    monkeypatch.setattr(subject, "align_names", extracted)
    with pytest.raises(Exception, match="a pair was extracted"):
        planned(budget="100%")
    monkeypatch.setattr(replayed_peak, "MOST_NODES", 10)
    assert planned(budget="100%").fits


def test_a_stated_number_stays_and_off_is_off() -> None:
    assert planned(budget="45%", inner="aot_eager", loss_chunks=16).loss.chunks == 16
    whole = planned(budget="90%", inner="aot_eager", disable_passes=["chunk_loss"])
    assert (whole.loss.chunks, whole.loss.reason) == (0, "off")


@pytest.mark.parametrize("budget", ["100%", "30%"])
def test_a_plan_file_replays_the_number(budget: str, tmp_path: Path) -> None:
    module, batch = case()
    gradients = []
    path = str(tmp_path / "plan.json")
    for options in ({"budget": budget, "save_plan": path}, {"plan": path}):
        torch._dynamo.reset()
        run = torch.compile(module, backend="actcomp", options={"inner": "aot_eager", **options})
        module.zero_grad()
        run(*batch).backward()
        gradients.append([p.grad.clone() for p in module.parameters() if p.grad is not None])
    first, again = fxcompress.reports()[-2:]
    assert first.loss == again.loss and first.decisions == again.decisions and first.fits == again.fits
    assert (first.loss.chunks > 0) == (budget == "30%")
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_the_numbers_to_choose_from() -> None:
    class Region:
        shape = (100, WORDS)

    assert counts(Region()) == (0, 2)  # type: ignore[arg-type]
