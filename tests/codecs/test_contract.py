"""What every registered codec is held to. A new codec is tested here by being registered."""

import pytest
import torch

from fxcompress import codecs
from fxcompress.codecs.base import Codec
from fxcompress.testing import FLOATS, check_roundtrip, dtypes, examples, fitting, sample

CODECS = list(examples())
LOSSY = [codec for codec in CODECS if codec.contract.kind != "exact"]
GROUPED = [codec for codec in LOSSY if codecs.params(codec).get("group")]
SIZES = (1, 2, 15, 63, 64, 65, 127, 1000)


def by_codec(cases: list[Codec]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("codec", cases, ids=str)


def group_of(codec: Codec) -> int:
    return int(str(codecs.params(codec)["group"]))


@by_codec(CODECS)
@pytest.mark.parametrize("cols", SIZES)
def test_odd_sizes(codec: Codec, cols: int) -> None:
    for dtype in dtypes(codec):
        check_roundtrip(codec, sample(codec, (3, fitting(codec, cols)), dtype))


@by_codec(CODECS)
@pytest.mark.parametrize("lead", [(), (1,), (2, 3), (2, 1, 2)])
def test_lead_dimensions(codec: Codec, lead: tuple[int, ...]) -> None:
    check_roundtrip(codec, sample(codec, (*lead, fitting(codec, 130)), dtypes(codec)[0]))


@by_codec(CODECS)
@pytest.mark.parametrize("lead", [(0,), (5, 0)])
def test_no_rows_at_all(codec: Codec, lead: tuple[int, ...]) -> None:
    x = sample(codec, (*lead, fitting(codec, 130)), dtypes(codec)[0])
    assert codec.decode(codec.encode(x, 3), x.shape[-1], x.dtype).shape == x.shape


@by_codec(CODECS)
def test_rows_do_not_depend_on_each_other_but_for_noise(codec: Codec) -> None:
    x = sample(codec, (2, fitting(codec, 200)), dtypes(codec)[0])
    alone = codec.encode(x[:1], 1)
    together = codec.encode(x, 1)
    for one, two in zip(alone, together, strict=True):
        assert torch.equal(one.view(torch.uint8), two[:1].view(torch.uint8))


@by_codec([codec for codec in CODECS if codec.period])
def test_a_row_of_whole_periods_is_stored_as_rows_of_one(codec: Codec) -> None:
    x = sample(codec, (3, 5 * codec.period), dtypes(codec)[0])
    for one, other in zip(codec.encode(x, 7), codec.encode(x.reshape(-1, codec.period), 7), strict=True):
        assert torch.equal(one.view(torch.uint8).flatten(), other.view(torch.uint8).flatten())


@by_codec(CODECS)
def test_configuration_round_trip(codec: Codec) -> None:
    assert codecs.make(codec.name, **codecs.params(codec)) == codec
    assert codec.name in codecs.names()


@by_codec(CODECS)
def test_deterministic_and_silent_on_the_users_random_stream(codec: Codec) -> None:
    x = sample(codec, (2, fitting(codec, 300)), dtypes(codec)[0])
    before = torch.get_rng_state()
    first, second = codec.encode(x, 5), codec.encode(x.clone(), 5)
    codec.decode(first, x.shape[-1], x.dtype)
    assert torch.equal(torch.get_rng_state(), before)
    for one, two in zip(first, second, strict=True):
        assert torch.equal(one.view(torch.uint8), two.view(torch.uint8))


@by_codec(CODECS)
def test_salt_as_a_tensor(codec: Codec) -> None:
    x = sample(codec, (2, fitting(codec, 300)), dtypes(codec)[0])
    for salt in (0, 7, 2**31 + 5, 2**40 + 3, 2**63 - 1):
        for one, two in zip(codec.encode(x, salt), codec.encode(x, torch.tensor(salt)), strict=True):
            assert torch.equal(one.view(torch.uint8), two.view(torch.uint8))


@by_codec(LOSSY)
def test_refuses_what_is_not_floating_point(codec: Codec) -> None:
    for dtype in (torch.int64, torch.bool, torch.complex64):
        assert codec.refuse(dtype)


@by_codec(GROUPED)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_non_finite_values_stay_in_their_group(codec: Codec, bad: float, dtype: torch.dtype) -> None:
    if codecs.params(codec).get("zero_preserving") and bad < 0:
        pytest.skip("negative values are outside this codec's domain")
    group = group_of(codec)
    x = sample(codec, (2, 3 * group), dtype)
    clean = codec.decode(codec.encode(x, 1), 3 * group, dtype)
    x[0, group + 3] = bad
    y = codec.decode(codec.encode(x, 1), 3 * group, dtype)
    hit = torch.zeros_like(x, dtype=torch.bool)
    hit[0, group : 2 * group] = True
    assert torch.equal(y[~hit], clean[~hit])
    if codecs.params(codec).get("zero_preserving"):
        hit &= ~(x <= 0)
        assert torch.equal(y == 0, x <= 0)
    assert y[hit].isnan().all()


@by_codec(LOSSY)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("value", [0.0, 1.0, 0.3359375, 65280.0, 2.0**-14])
def test_constants_that_bf16_holds_are_exact(codec: Codec, dtype: torch.dtype, value: float) -> None:
    if (codec.name in ("float8", "bounded") or codecs.params(codec).get("sign_preserving")) and value:
        pytest.skip("a scale per group alone does not make constants exact")
    x = torch.full((2, fitting(codec, 100)), value, dtype=dtype)
    assert torch.equal(check_roundtrip(codec, x), x)


@by_codec(LOSSY)
@pytest.mark.parametrize("scale", [2.0**-149, 2.0**-140, 2.0**-126, 2.0**-110])
def test_denormals(codec: Codec, scale: float) -> None:
    x = sample(codec, (2, fitting(codec, 200)), torch.float32).mul(4).round() * scale
    y = check_roundtrip(codec, x)
    if codecs.params(codec).get("zero_preserving"):
        assert torch.equal(y == 0, x == 0)


@by_codec(LOSSY)
def test_fp16_near_its_maximum(codec: Codec) -> None:
    x = sample(codec, (4, fitting(codec, 256)), torch.float64)
    x = (x / x.abs().amax() * 65504).to(torch.float16)
    x[1] = x[1].sign() * 65504
    assert check_roundtrip(codec, x).isfinite().all()


@by_codec(LOSSY)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_largest_magnitudes(codec: Codec, dtype: torch.dtype) -> None:
    x = sample(codec, (2, fitting(codec, 256)), torch.float64)
    x = (x / x.abs().amax() * 2.0**125).to(dtype)
    check_roundtrip(codec, x)
    x[0, 0] = 2.0**126
    assert codec.decode(codec.encode(x, 1), x.shape[-1], dtype)[0, 0].isnan()


@by_codec(LOSSY)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_large_offset_and_outliers(codec: Codec, dtype: torch.dtype) -> None:
    x = sample(codec, (2, fitting(codec, 256)), torch.float64)
    check_roundtrip(codec, (1000 + x).to(dtype))
    x[:, 17] = 3e4
    check_roundtrip(codec, x.to(dtype))


@by_codec(LOSSY)
@pytest.mark.parametrize("power", [-60, -3, 5, 60])
def test_scaling_by_a_power_of_two_scales_the_error(codec: Codec, power: int) -> None:
    if "stochastic" in codecs.params(codec).values():
        pytest.skip("another word is another noise; the error is compared under nearest rounding")
    if codec.contract.absolute:
        pytest.skip("an absolute bound does not scale with the data")
    x = sample(codec, (2, fitting(codec, 256)), torch.float32)
    plain, scaled = (codec.decode(codec.encode(part, 1), x.shape[-1], x.dtype) for part in (x, x * 2.0**power))
    if codecs.params(codec).get("sign_preserving"):
        # What stands for a positive zero is one number at every scale.
        plain, scaled = (torch.where(y.abs() > 2.0**-125, y, 0.0) for y in (plain, scaled))
    assert torch.equal(plain * 2.0**power, scaled)


@by_codec(CODECS)
def test_non_contiguous_input(codec: Codec) -> None:
    x = sample(codec, (fitting(codec, 200), 3), dtypes(codec)[0]).t()
    for one, two in zip(codec.encode(x, 1), codec.encode(x.contiguous(), 1), strict=True):
        assert torch.equal(one.view(torch.uint8), two.view(torch.uint8))
