"""Gradients through masks, however they are made and whatever reads them: finite where the plain program's are."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from fxcompress import pipeline
from fxcompress.options import Options
from fxcompress.testing_graphs import Partition, capture, distance, run

Put = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Read = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def hidden() -> torch.Tensor:
    return torch.ones(16, 16, dtype=torch.bool).triu(1)


PUT: dict[str, Put] = {
    "filled": lambda s, m: s.masked_fill(hidden(), -math.inf),
    "filled with -1e4": lambda s, m: s.masked_fill(hidden(), -1e4),
    "chosen": lambda s, m: torch.where(hidden(), torch.finfo(s.dtype).min, s),
    "a tensor that the program states": lambda s, m: torch.where(hidden(), torch.tensor(-1e9), s),
    "whole numbers": lambda s, m: s + (hidden().long() * -10000).float(),
    "subtracted": lambda s, m: s - 1e9 * hidden().float(),
    "shifted": lambda s, m: torch.where(hidden(), s - 1e4, s),
    "padded": lambda s, m: F.pad(s[:, :12], (0, 4), value=-math.inf),
    "the caller's": lambda s, m: s + m,
    "the caller's, summed up": lambda s, m: s + m.cumsum(1),
    "the caller's, as logarithms": lambda s, m: s + m.exp().log(),
    "the caller's, large": lambda s, m: s + m.clamp(min=-1e6),
    "the caller's, filled with": lambda s, m: s.masked_fill(hidden(), m[0, 15]),
    "the caller's, chosen": lambda s, m: torch.where(hidden(), m, s),
    "the caller's, beside": lambda s, m: torch.cat([s[:, :8], m[:, 8:]], 1),
    "the caller's, in a product's sum": lambda s, m: torch.baddbmm(m[None], s[None], s[None])[0],
}
MOVED: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "scaled": lambda s: s * 0.5,
    "divided": lambda s: s / 1.7,
    "turned": lambda s: s.T.contiguous(),
    "summed up": lambda s: s.cumsum(1),
    "cast": lambda s: s.bfloat16().float(),
    "sorted": lambda s: s.sort(1)[0],
    "limited": lambda s: s.clamp(max=3.0),
    "leaky": lambda s: F.leaky_relu(s, 0.1),
    "log-sigmoid": F.logsigmoid,
    "log-sum-exp of two": lambda s: torch.logaddexp(s, torch.zeros(())),
    "log-softmax": lambda s: s.log_softmax(1),
    "largest so far": lambda s: s.cummax(1)[0],
}
READ: dict[str, Read] = {
    "softmax": lambda s, v: s.softmax(1) @ v,
    "by hand": lambda s, v: (s - s.amax(1, keepdim=True)).exp() @ v,
    "log-sum-exp": lambda s, v: s.logsumexp(1) * v[0],
    "exp": lambda s, v: s.exp() @ v,
    "sigmoid": lambda s, v: s.sigmoid() @ v,
    "tanh": lambda s, v: s.tanh() @ v,
    "softplus": lambda s, v: F.softplus(s) @ v,
    "squared relu": lambda s, v: F.relu(s).square() @ v,
    "elu": lambda s, v: (F.elu(s) + 1) @ v,
    "mish": lambda s, v: F.mish(s) @ v,
    "clamp": lambda s, v: s.clamp(-3, 3).sin() @ v,
    "comparison": lambda s, v: torch.where(s < -50, 0.0, s).sin() @ v,
    "maximum": lambda s, v: s.amax(1) * v[0],
    "running log-sum-exp": lambda s, v: s.logcumsumexp(1).exp() @ v,
    "binary cross-entropy": lambda s, v: F.binary_cross_entropy_with_logits(s, v.detach().sigmoid()),
}


def check(put: str, moves: list[str], read: str, partition: Partition = "bases", low: float = -math.inf) -> bool:
    """Compare, unless the plain program's loss or gradients are not finite themselves; whether they are."""
    generator = torch.Generator().manual_seed(0)
    x, v = (torch.randn(16, 16, generator=generator).requires_grad_() for _ in range(2))
    mask = torch.zeros(16, 16).masked_fill(hidden(), low)

    def function(x: torch.Tensor, v: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
        s = PUT[put](x.sin() * 3, m)
        for move in moves:
            s = MOVED[move](s)
        return READ[read](s, v.sin())

    pair = capture(function, (x, v, mask), partition)
    before = run(pair)
    results = [value for value in (*before.outputs, *before.gradients) if value is not None]
    if not all(bool(value.isfinite().all()) for value in results):
        return False
    pipeline.run(pair.fw, pair.bw, Options(inner="aot_eager", min_bytes=64))
    assert distance(run(pair).gradients, before.gradients) < 0.3
    return True


@pytest.mark.parametrize("put", PUT)
@pytest.mark.parametrize("read", ["softmax", "clamp"])
def test_each_mask_is_read(put: str, read: str) -> None:
    check(put, [], read)


@pytest.mark.parametrize("read", READ)
def test_each_reader_reads_masks(read: str) -> None:
    compared = [check("the caller's, summed up", [], read, low=low) for low in (-math.inf, -1e4)]
    assert any(compared)


def test_a_binary_cross_entropy_reads_the_callers_large_mask() -> None:
    check("the caller's, large", [], "binary cross-entropy", "default")


@settings(deadline=None, max_examples=20, derandomize=True)
@given(
    st.sampled_from(sorted(PUT)),
    st.lists(st.sampled_from(sorted(MOVED)), max_size=2, unique=True),
    st.sampled_from(sorted(READ)),
    st.sampled_from(["bases", "default"]),
)
def test_masks_read_through_other_operators(put: str, moves: list[str], read: str, partition: Partition) -> None:
    check(put, moves, read, partition)
