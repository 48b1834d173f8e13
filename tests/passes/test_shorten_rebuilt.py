"""Backwards that read a saved normalized value: fewer operators, and the same gradient to rounding."""

import pytest
import torch
from torch import Tensor

from fxcompress import pipeline
from fxcompress.options import Options
from fxcompress.passes.ops import op_name
from fxcompress.testing_graphs import capture, distance, run

UNCHANGED = Options(min_bytes=64, inner="inductor", limit=0, disable_passes=("outline", "fuse", "restore_kept"))
"""Values are saved normalized, and are not encoded."""


def multiplied(h: Tensor) -> Tensor:
    centered = h - h.mean(0, keepdim=True)
    return centered * (centered.square().mean(0, keepdim=True) + 1e-5).rsqrt()


def divided(h: Tensor) -> Tensor:
    centered = h - h.mean(0, keepdim=True)
    return centered / (centered.square().mean(0, keepdim=True) + 1e-5).sqrt()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("normalize", [multiplied, divided])
def test_what_was_normalized_is_not_normalized_again(normalize: object, dtype: torch.dtype) -> None:
    assert callable(normalize)
    torch.manual_seed(0)
    # Means far from zero, which a difference from them would lose digits to.
    inputs = [torch.randn(192, 16, dtype=dtype) + 20, torch.randn(16, 48, dtype=dtype, requires_grad=True)]
    pair = capture(lambda x, first: torch.tanh(normalize(x @ first)).square(), inputs)
    copy = pair.copy()
    result = pipeline.run(copy.fw, copy.bw, UNCHANGED)
    assert any(decision.tensor.name.startswith("actcomp_normalized_") for decision in result.plan.decisions)
    assert "shorten_rebuilt" in dict(result.timings_ms)
    centered = [node for node in copy.bw.graph.nodes if op_name(node) == "sub" and "mean" in str(node.args[1])]
    assert not centered
    wide = capture(
        lambda x, first: torch.tanh(normalize(x @ first)).square(),
        [value.detach().double().requires_grad_(value.requires_grad) for value in inputs],
    )
    exact = run(wide).gradients[:2]
    ours, plain = (distance(run(each).gradients[:2], exact) for each in (copy, pair))
    assert ours <= plain * 1.5 + 1e-12
