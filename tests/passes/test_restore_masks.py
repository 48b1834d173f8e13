"""Masks of values that are kept: had from them again, beside masks and codes that stay."""

import pytest
import torch
from torch import Tensor

from fxcompress import pipeline
from fxcompress.options import Options
from fxcompress.plan import KEEP, Plan
from fxcompress.testing_graphs import Pair, capture, run, same

LAYERS = 4


def network(x: Tensor, *weights: Tensor) -> Tensor:
    for weight in weights[:-1]:
        x = torch.relu(x @ weight)
    return x @ weights[-1]


@pytest.fixture(scope="module")
def pair() -> Pair:
    torch.manual_seed(0)
    inputs = [torch.randn(64, 64), *(torch.randn(64, 64) / 6 for _ in range(LAYERS))]
    return capture(network, [value.requires_grad_() for value in inputs])


def rewritten(pair: Pair, plan: Plan | None = None, **options: object) -> tuple[Pair, pipeline.Result]:
    copy = pair.copy()
    chosen = Options(inner="aot_eager", min_bytes=64, codec="dual", operand_bits=4, **options)  # type: ignore[arg-type]
    return copy, pipeline.run(copy.fw, copy.bw, chosen, plan=plan)


def test_what_is_kept_answers_for_itself(pair: Pair) -> None:
    """`dual` answers for no zeros, so that a mask of each result is to be saved; with `limit=0` all is kept."""
    with_masks, _ = rewritten(pair, limit=0, disable_passes=("restore_kept",))
    without, result = rewritten(pair, limit=0)
    assert run(without).saved_nbytes == run(pair).saved_nbytes < run(with_masks).saved_nbytes
    assert result.plan.saved_bytes_after == result.plan.saved_bytes_before
    expected = run(pair)
    assert all(map(same, run(without).gradients, expected.gradients))


@pytest.mark.parametrize("limit", range(2 * LAYERS))
def test_what_is_encoded_keeps_its_mask(pair: Pair, limit: int) -> None:
    copy, result = rewritten(pair, limit=limit)
    encoded = [decision for decision in result.plan.decisions if decision.codec not in (KEEP, "shared")]
    assert len(encoded) <= limit
    found, expected = run(copy), run(pair)
    assert same(found.outputs[0], expected.outputs[0])
    for one, two in zip(found.gradients, expected.gradients, strict=True):
        assert one is not None and two is not None and (one - two).norm() <= 0.3 * two.norm()
    # A plan that is replayed does the same again.
    _, again = rewritten(pair, plan=Plan((result.plan,), (), "", ""), limit=limit)
    assert again.plan == result.plan
