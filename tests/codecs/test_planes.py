"""Both orders of the arithmetic store the same bits."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from fxcompress.codecs import planes
from fxcompress.codecs.affine import Affine
from fxcompress.codecs.valueset import Valueset

WIDTH = 320


def special(dtype: torch.dtype, *, non_negative: bool) -> Tensor:
    """Rows of every kind: normal, offset, constant, with zeros, tiny, huge, NaN and infinite."""
    torch.manual_seed(0)
    rows = torch.randn(10, WIDTH, dtype=torch.float64)
    rows[1] += 1000
    rows[2] = 3.25
    rows[3] = rows[3].relu()
    # Of zeros with both signs either may be the minimum, and its sign is stored.
    rows[4] = rows[4].abs() * 1e-30
    rows[5] *= 1e30 if dtype != torch.float16 else 1e4
    rows[6, 7] = math.nan
    rows[7, 9] = math.inf
    rows[8, 200:] = 0
    rows[9] = rows[9].abs() * 1e-42
    return (rows.relu() if non_negative else rows).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("keeps", ["", "zero_preserving", "sign_preserving"])
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_affine_is_equal_bit_for_bit(
    bits: int, rounding: Any, keeps: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    if keeps and bits < 2:
        pytest.skip("zeros and signs need codes of their own")
    codec = Affine(bits=bits, rounding=rounding, **({keeps: True} if keeps else {}))  # type: ignore[arg-type]
    x = special(dtype, non_negative=keeps == "zero_preserving")
    expected = codec.encode(x, 1234)
    monkeypatch.setattr(planes, "wanted", lambda _: True)
    for ours, theirs in zip(codec.encode(x, 1234), expected, strict=True):
        assert ours.dtype == theirs.dtype and torch.equal(ours, theirs)
    decoded = codec.decode(expected, WIDTH, dtype)
    monkeypatch.undo()
    assert torch.equal(decoded.nan_to_num(7), codec.decode(expected, WIDTH, dtype).nan_to_num(7))


@pytest.mark.parametrize("count", [2, 3, 4, 9, 16, 1000])
def test_valueset_is_equal_bit_for_bit(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    codec = Valueset(count=count)
    x = torch.randint(0, count, (3, WIDTH), dtype=torch.int16)
    expected = codec.encode(x, 0)
    monkeypatch.setattr(planes, "wanted", lambda _: True)
    assert all(torch.equal(a, b) for a, b in zip(codec.encode(x, 0), expected, strict=True))
    assert torch.equal(codec.decode(expected, WIDTH, x.dtype), x)
