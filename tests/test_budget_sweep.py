"""Falling budgets on a real model, traced once: no higher peak, no lower cost, and PyTorch's own budgets never win."""

from typing import Any

import pytest
import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode

from bench.models.gpt import GPT, GPTConfig
from bench.step_graphs import Joint, partition, trace
from bench.step_graphs import plain as plain_partitioner
from fxcompress import compat, ledger
from fxcompress.options import Options
from fxcompress.partition import ActcompPartitioner
from fxcompress.passes.copy_graph import copy_graph
from fxcompress.passes.cut_within import MEMORY_BUDGETS, Cuts, cut_within
from fxcompress.passes.estimate_cut import make_model
from fxcompress.passes.liveness import Machine

OPTIONS = Options(inner="aot_eager", min_bytes=1024)


@pytest.fixture(scope="module")
def joint() -> Joint:
    """A GPT of four equal layers."""
    with FakeTensorMode():
        tokens = torch.randint(0, 256, (4, 64))
        return trace(GPT(GPTConfig(context=64, layers=4, heads=2, width=64)), (tokens, tokens))


def test_a_smaller_budget_never_means_a_higher_peak_or_a_lower_cost(joint: Joint) -> None:
    peaks, seconds = [], []
    for budget in ("90%", "60%"):
        options = Options(inner="aot_eager", min_bytes=1024, budget=budget)
        # Not by `partition`, which plans as for a GPU.
        ActcompPartitioner(options, decompose=False)(copy_graph(joint.gm), joint.inputs, **joint.arguments)
        plan = ledger.reports()[-1]
        (fit,) = plan.fits
        assert plan.peak_after.peak_bytes <= fit.limit_bytes
        peaks.append(plan.peak_after.peak_bytes)
        seconds.append(fit.recompute_s + fit.code_s)
    assert peaks == sorted(peaks, reverse=True)
    assert seconds == sorted(seconds)


@pytest.mark.parametrize("budget", MEMORY_BUDGETS[1:2])
def test_pytorchs_cut_at_a_memory_budget_is_never_better(joint: Joint, budget: float) -> None:
    """At the peak that it reaches, ours costs no more modelled time."""
    seen: list[tuple[float, Cuts]] = []

    def choose(graph: fx.Graph, info: Any, torch_choice: compat.TorchChoice) -> list[fx.Node]:
        gm, machine, count = graph.owning_module, Machine(False), joint.num_fwd_outputs
        assert gm is not None
        plain = torch_choice(rebuild_more=False)
        model = make_model(gm, plain, OPTIONS, count, machine)
        theirs = model.sketch("theirs", torch_choice(rebuild_more=False, memory_budget=budget))
        extra_s = theirs.recompute_s - model.sketch("plain", plain).recompute_s
        limit = theirs.estimate().peak_kept()
        seen.append((extra_s, cut_within(gm, info, torch_choice, OPTIONS, lambda peak: limit, count, machine)))
        return plain

    with compat.choosing_saved_values(choose):
        partition(joint, plain_partitioner)
    ((extra_s, cuts),) = seen
    assert cuts.ranked[0].fits and cuts.ranked[0].seconds <= extra_s
