"""Timelines add up to the simulated curve, moment by moment, and to what an interpreter allocates."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fxcompress import pipeline
from fxcompress.options import Options
from fxcompress.passes.find_saved import find_saved
from fxcompress.passes.liveness import Machine, find_peak
from fxcompress.passes.record_memory import record_memory
from fxcompress.testing_graphs import Pair, capture_module, measure
from fxcompress.timeline import Timeline


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = F.dropout(F.gelu(layer(x)), 0.1) + x
        return x.square().mean()


class Conv(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten())

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = self.body(x)
        return y, y.sum()


CASES = {"mlp": (Mlp, (256, 64)), "conv": (Conv, (16, 3, 12, 12))}


def pair_of(name: str, *, compress: bool) -> Pair:
    torch.manual_seed(0)
    module, shape = CASES[name]
    pair = capture_module(module(), (torch.randn(shape),))
    if compress:
        options = Options(inner="aot_eager", min_bytes=1024)
        pipeline.run(pair.fw, pair.bw, options, num_fwd_outputs=pair.num_fwd_outputs)
    return pair


def curve(timeline: Timeline) -> list[int]:
    """Live bytes from the lives alone."""
    totals = [moment.workspace_bytes for moment in timeline.moments]
    for life in timeline.lives:
        for i in range(life.first, life.last + 1):
            totals[i] += life.nbytes
    return totals


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("name", list(CASES))
def test_lives_add_up_to_the_simulated_curve(name: str, compress: bool, fused: bool) -> None:
    pair = pair_of(name, compress=compress)
    timeline = record_memory(pair.fw, pair.bw, pair.num_fwd_outputs, Machine(fused))
    peak = find_peak(pair.fw, pair.bw, pair.num_fwd_outputs, Machine(fused))
    assert curve(timeline) == [moment.live_bytes for moment in timeline.moments] == list(peak.timeline)
    assert timeline.peak_bytes == peak.peak_bytes
    assert peak.at in {
        f"{moment.phase}:{moment.name}" for moment in timeline.moments if moment.live_bytes == peak.peak_bytes
    }
    assert sum(moment.phase == "forward" for moment in timeline.moments) == timeline.turn


def test_an_interpreter_allocates_as_much() -> None:
    pair = pair_of("mlp", compress=False)
    timeline = record_memory(pair.fw, pair.bw, pair.num_fwd_outputs, Machine(False))
    assert timeline.peak_bytes == max(max(part.values()) for part in measure(pair))


@pytest.mark.parametrize("name", list(CASES))
def test_saved_tensors_live_across_the_turn_and_nothing_else_does(name: str) -> None:
    pair = pair_of(name, compress=False)
    timeline = record_memory(pair.fw, pair.bw, pair.num_fwd_outputs, Machine(False))
    across = {life.name for life in timeline.lives if life.first < timeline.turn <= life.last}
    assert across and across <= {life.name for life in timeline.lives if life.saved}
    pairs = find_saved(pair.fw, pair.bw, num_fwd_outputs=pair.num_fwd_outputs)
    assert sum(life.saved for life in timeline.lives) <= len(pairs)


def test_moments_name_layer_and_line() -> None:
    pair = pair_of("mlp", compress=False)
    timeline = record_memory(pair.fw, pair.bw, pair.num_fwd_outputs, Machine(False))
    assert {moment.phase for moment in timeline.moments} == {"forward", "backward"}
    assert all(0 <= life.first <= life.last < len(timeline.moments) for life in timeline.lives)


def test_a_timeline_without_moments() -> None:
    empty = Timeline((), ())
    assert empty.peak_bytes == 0 and empty.turn == 0 and empty.peak == 0
