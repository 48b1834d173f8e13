"""Fits against brute force over all ways to keep or encode what a pair saves."""

import itertools
from collections.abc import Sequence

import pytest
import torch
from torch import nn

from fxcompress.options import Options
from fxcompress.passes import fit_budget as subject
from fxcompress.passes.alias import find_storages
from fxcompress.passes.choose import choose
from fxcompress.passes.collect import collect
from fxcompress.passes.demand import find_demands
from fxcompress.passes.find_masked import find_masked
from fxcompress.passes.find_saved import find_saved
from fxcompress.passes.fit_budget import Fitted, fit_budget
from fxcompress.passes.liveness import Machine
from fxcompress.passes.values import find_values
from fxcompress.solve.allocate import Allocation, allocate
from fxcompress.solve.slots import Items, cost_of, curve_of
from fxcompress.testing_graphs import capture_module

WIDTHS = (64, 256, 256, 64, 64, 64, 64)


def fitted(limit_bytes: int) -> Fitted:
    """Of layers of `WIDTHS`, one after the other."""
    layers = [nn.Sequential(nn.Linear(a, b, bias=False), nn.Tanh()) for a, b in itertools.pairwise(WIDTHS)]
    pair = capture_module(nn.Sequential(*layers), (torch.randn(256, WIDTHS[0]),))
    saved = find_saved(pair.fw, pair.bw, num_fwd_outputs=pair.num_fwd_outputs)
    storages, values = find_storages(pair.fw, saved, pair.num_fwd_outputs), find_values(pair.fw)
    facts = collect(storages, find_demands(pair.bw, saved, values), values, find_masked(pair.fw), 64)
    choice = choose(facts, storages, values, Options(min_bytes=64), {})
    return fit_budget(pair.fw, pair.bw, storages, choice, limit_bytes=limit_bytes, machine=Machine(True), step_s=1e-3)


def least_s(items: Items, rest: Sequence[int], peak_bytes: int) -> float:
    """The least that a choice of this peak costs."""
    choices = itertools.product(*(range(len(options)) for options in items))
    return min(cost_of(items, chosen) for chosen in choices if max(curve_of(items, rest, chosen)) <= peak_bytes)


@pytest.mark.parametrize("limit_bytes", [0, 1])
def test_where_no_choice_fits_the_bound_is_that_of_the_lowest_peak(
    limit_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What has this peak at the least cost is taken, or with a limit of 0 something dearer, and no bound above it."""
    asked: list[tuple[Items, Sequence[int]]] = []
    found: list[Allocation] = []

    def recorded(items: Items, rest: Sequence[int], limit: int) -> Allocation:
        asked.append((items, rest))
        found.append(allocate(items, rest, limit))
        return found[0]

    monkeypatch.setattr(subject, "allocate", recorded)
    fit = fitted(limit_bytes)
    least = least_s(*asked[0], found[0].peak_bytes)
    assert not found[0].fits and fit.bound_s == pytest.approx(least) and fit.lowest_peak_bytes == found[0].peak_bytes
    assert fit.code_s > 2 * least if limit_bytes == 0 else fit.code_s == pytest.approx(least)
