"""Affine codes: directed rounding needs no clamps, zeros are kept, and stochastic rounding has no bias."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fxcompress.codecs.affine import Affine, reference
from fxcompress.codecs.affine.signs import least_positive
from fxcompress.codecs.groups import LARGEST, floor_bits, nearest_bf16, scale_bits
from fxcompress.errors import OptionError
from fxcompress.testing import check_roundtrip

ANY = st.floats(-LARGEST, LARGEST, width=32)
ORDINARY = st.floats(-1e4, 1e4, width=32)
BITS = st.sampled_from((1, 2, 4, 8))
SLACK = 1 + 2**-14
"""Roundings of (x - zero)/scale and of the decode, in steps: below 255 steps · 2⁻²²."""


def scale_and_zero(word: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Metadata read by bf16 itself rather than by the shifts under test."""
    halves = word.contiguous().view(torch.bfloat16).reshape(*word.shape, 2)
    return halves[..., 1].double(), halves[..., 0].double()


@settings(deadline=None, max_examples=300)
@given(st.lists(ANY | ORDINARY, min_size=1, max_size=64), BITS, st.booleans(), st.integers(0, 9))
def test_error_is_at_most_one_step(values: list[float], bits: int, nearest: bool, salt: int) -> None:
    codec = Affine(bits=bits, group=64, rounding="nearest" if nearest else "stochastic")
    x = torch.tensor(values, dtype=torch.float32)
    codes, word = codec.encode(x, salt)
    y = codec.decode((codes, word), len(values), x.dtype)
    scale, zero = scale_and_zero(word)
    ulp = x.double().abs().max() * 2**-22
    assert zero <= x.double().min() and zero + (2**bits - 1) * scale >= x.double().max() - ulp
    assert ((y.double() - x.double()).abs() <= scale * SLACK / (2 if nearest else 1) + ulp).all()


@settings(deadline=None, max_examples=200)
@given(st.lists(st.just(0.0) | st.floats(0, LARGEST, width=32) | st.floats(0, 8, width=32), min_size=1, max_size=64))
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("rounding", ["stochastic", "nearest"])
def test_zero_is_zero_and_nothing_else_is(bits: int, rounding: str, values: list[float]) -> None:
    codec = Affine(bits=bits, group=64, rounding=rounding, zero_preserving=True)  # type: ignore[arg-type]
    x = torch.tensor(values, dtype=torch.float32)
    parts = codec.encode(x, 3)
    y = codec.decode(parts, len(values), x.dtype)
    scale, _ = scale_and_zero(parts[1])
    assert torch.equal(y > 0, x > 0) and torch.equal(y == 0, x == 0)
    assert ((y.double() - x.double()).abs() <= scale * SLACK + x.double().abs().max() * 2**-22 + 2**-126).all()


def test_zero_preserving_keeps_its_predicate_among_non_finite_values() -> None:
    codec = Affine(bits=4, group=16, zero_preserving=True)
    x = torch.tensor([0.0, -0.0, 1.0, 2.5, float("nan"), float("inf"), 0.0, 1e-40] * 2)
    y = codec.decode(codec.encode(x, 1), 16, x.dtype)
    assert torch.equal(y == 0, x == 0) and y[x != 0].isnan().all()
    assert not torch.signbit(y[x == 0]).any()


@settings(deadline=None, max_examples=200)
@given(st.lists(st.floats(-LARGEST, LARGEST, width=32) | st.floats(-8, 8, width=32), min_size=1, max_size=64))
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("rounding", ["stochastic", "nearest"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_positive_stays_positive_and_nothing_else_is(
    bits: int, rounding: str, dtype: torch.dtype, values: list[float]
) -> None:
    codec = Affine(bits=bits, group=64, rounding=rounding, sign_preserving=True)  # type: ignore[arg-type]
    x = torch.tensor(values, dtype=torch.float64).clamp(-6e4, 6e4).to(dtype)
    check_roundtrip(codec, x[None])
    y = codec.decode(codec.encode(x, 3), len(values), x.dtype)
    assert torch.equal(y > 0, x > 0)
    below, above = (-x.double()).clamp_min(0).max(), x.double().clamp_min(0).max()
    for sign, largest in ((x > 0, above), (x <= 0, below)):
        step = (largest / (2 ** (bits - 1) - 1) * (1 + 2**-7)).clamp_min(2.0**-126) * (
            1 if rounding == "stochastic" else 0.5
        )
        cast = x.double().abs() * torch.finfo(dtype).eps + largest * 2**-22 + least_positive(dtype)
        assert ((y.double() - x.double()).abs() <= step + cast)[sign].all()


def test_each_sign_has_a_scale_of_its_own() -> None:
    x = torch.randn(64, generator=torch.Generator().manual_seed(0)) * 0.01
    x[5] = 100.0
    codec = Affine(bits=8, group=64, rounding="nearest", sign_preserving=True)
    y = codec.decode(codec.encode(x, 1), 64, x.dtype)
    below = x <= 0
    assert (y - x)[below].abs().max() < x[below].abs().max() / 127 and abs(y[5] - 100) < 1


@settings(deadline=None, max_examples=500)
@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_directed_rounding_to_bf16(value: float) -> None:
    x = torch.tensor(value, dtype=torch.float32)
    below = floor_bits(x).view(torch.float32)
    assert below <= x and below.to(torch.bfloat16).float() == below
    exact = x.to(torch.bfloat16).float() == x
    assert not exact or below == x
    above = scale_bits(x.abs(), 1).view(torch.float32)
    normal = x.abs().clamp_min(2.0**-126)
    assert above >= normal and (above == normal or floor_bits(normal).view(torch.float32) < normal)
    assert above.to(torch.bfloat16).float() == above


@settings(deadline=None, max_examples=500)
@given(st.floats(width=32, allow_nan=False))
def test_nearest_bf16_is_what_a_cast_gives(value: float) -> None:
    x = torch.tensor(value, dtype=torch.float32)
    assert nearest_bf16(x) == x.to(torch.bfloat16).float()


def test_the_ragged_tail_repeats_the_last_element() -> None:
    codec = Affine(bits=4, group=16)
    x = torch.tensor([5.0, 6.0, 7.0])
    _, word = codec.encode(x, 1)
    scale, zero = scale_and_zero(word)
    assert float(zero) == 5.0 and float(scale) < 2 / 14


def mean_error(codec: Affine, x: torch.Tensor, salts: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean over salts of (decode - x), in steps, per element; and the steps."""
    total = torch.zeros_like(x, dtype=torch.float64)
    for salt in range(salts):
        codes, word = codec.encode(x, salt)
        total += codec.decode((codes, word), x.shape[-1], torch.float64) - x.double()
    scale, below = scale_and_zero(word)
    steps, of_below = (each.repeat_interleave(codec.group, -1)[..., : x.shape[-1]] for each in (scale, below))
    return total / salts / (torch.where(x <= 0, of_below, steps) if codec.sign_preserving else steps), scale


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("keeps", ["", "zero_preserving", "sign_preserving"])
@pytest.mark.parametrize("saturating", [False, True])
def test_stochastic_rounding_is_unbiased(bits: int, keeps: str, saturating: bool) -> None:
    """Per element within the noise and a byte's resolution; over all elements within the noise alone."""
    if keeps and bits == 1:
        pytest.skip("refused")
    codec = Affine(bits=bits, **({keeps: True} if keeps else {}))  # type: ignore[arg-type]
    x = torch.randn(4096, generator=torch.Generator().manual_seed(1))
    x = (x.sigmoid() * 6).clamp(1, 5) if saturating else x
    x = x.relu() if keeps == "zero_preserving" else x - 2 if keeps and saturating else x
    salts = 256
    error, _ = mean_error(codec, x, salts)
    sigma = 0.5 * salts**-0.5
    assert error.abs().max() < 5 * sigma + 1 / 512
    assert abs(float(error.mean())) < 4 * sigma * x.numel() ** -0.5 + 1 / 512 * 4 * x.numel() ** -0.5


def test_steps_with_constant_statistics_do_not_repeat_their_noise_under_other_salts() -> None:
    x = torch.tensor([0.0, 1.0] + [0.3] * 62)
    codec = Affine(bits=1)
    drawn = torch.stack([codec.decode(codec.encode(x, salt), 64, x.dtype) for salt in range(64)])
    share = drawn[:, 2:].mean()
    assert abs(float(share) - 0.3) < 4 * (0.21 / (64 * 62)) ** 0.5 + 1 / 512
    assert drawn[:, 2:].unique(dim=0).shape[0] == 64


def test_equal_values_of_one_group_draw_different_noise() -> None:
    x = torch.tensor([0.0, 1.0] + [0.5] * 62)
    y = Affine(bits=1).decode(Affine(bits=1).encode(x, 1), 64, x.dtype)
    assert 15 < float(y[2:].sum()) < 47


def test_codes_against_plain_arithmetic() -> None:
    x = torch.randn(512, generator=torch.Generator().manual_seed(2))
    codec = Affine(bits=4, rounding="nearest")
    codes, word = codec.encode(x, 1)
    scale, zero = scale_and_zero(word)
    exact = (x.double().reshape(4, 128) - zero[:, None]) / scale[:, None]
    low, high = codes & 15, codes >> 4
    assert (torch.cat((low, high), -1).double() - exact).abs().max() <= 0.5 + 1e-5


@pytest.mark.parametrize(
    "params",
    [
        {"bits": 3},
        {"bits": 16},
        {"group": 24},
        {"group": -64},
        {"group": "64"},
        {"rounding": "up"},
        {"bits": 1, "zero_preserving": True},
        {"bits": 1, "sign_preserving": True},
        {"bits": 4, "sign_preserving": True, "zero_preserving": True},
        {"heads": 2, "dim": 4, "sign_preserving": True},
        {"heads": 2},
        {"heads": -1, "dim": 4},
        {"heads": 2, "dim": 4, "group": 64},
        {"heads": 2, "dim": 4, "zero_preserving": True},
    ],
    ids=str,
)
def test_wrong_configurations_are_refused(params: dict[str, object]) -> None:
    with pytest.raises(OptionError, match="affine"):
        Affine(**params)  # type: ignore[arg-type]


def test_the_default_group_is_the_one_of_the_width() -> None:
    assert [Affine(bits=bits).group for bits in (1, 2, 4, 8)] == [64, 64, 128, 128]
    assert Affine(bits=4) == Affine(bits=4, group=128)


def test_a_group_that_is_not_finite_has_a_nan_scale() -> None:
    zero_bits = floor_bits(torch.tensor([0.0, -torch.inf, 0.0]))
    word = reference.make_word(zero_bits, torch.tensor([torch.nan, 0.0, torch.inf]), 3)
    assert reference.read_word(word)[0].isnan().all()


def test_each_head_is_a_group() -> None:
    """By hand: the elements of a head, of all tokens, quantized as one group of their own."""
    x = torch.randn(6, 3, 16, generator=torch.Generator().manual_seed(4)) * torch.tensor([1.0, 10.0, 0.1])[:, None]
    codec = Affine(bits=8, heads=3, dim=16, rounding="nearest")
    y = codec.decode(codec.encode(x.reshape(-1), 1), x.numel(), x.dtype).reshape(x.shape)
    alone = Affine(bits=8, group=96, rounding="nearest")
    for head in range(3):
        part = x[:, head].reshape(-1)
        assert torch.equal(y[:, head].reshape(-1), alone.decode(alone.encode(part, 1), 96, x.dtype))
    x[2, 1, 3] = torch.nan
    z = codec.decode(codec.encode(x.reshape(-1), 1), x.numel(), x.dtype).reshape(x.shape)
    assert z[:, 1].isnan().all() and torch.equal(z[:, [0, 2]], y[:, [0, 2]])
    with pytest.raises(OptionError, match="does not hold"):
        codec.fields(50, x.dtype)
