"""Codes from running ranges: against Mesa's equations in a loop; clamping; what is not finite; what a payload keeps."""

from collections.abc import Iterator

import pytest
import torch

from fxcompress import ranges
from fxcompress.codecs.affine import Affine
from fxcompress.codecs.running import Running
from fxcompress.errors import OptionError


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    ranges.clear()
    yield
    ranges.clear()


def steps_of(scale: float, seed: int, tokens: int = 16, heads: int = 3, dim: int = 8) -> torch.Tensor:
    """[tokens · heads · dim], heads of different spread."""
    generator = torch.Generator().manual_seed(seed)
    spread = scale * torch.arange(1, heads + 1)[:, None]
    return (torch.randn(tokens, heads, dim, generator=generator) * spread).reshape(-1)


def through(codec: Running, x: torch.Tensor) -> torch.Tensor:
    return codec.decode(codec.encode(x, 1), x.shape[-1], x.dtype)


def by_hand(x: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """[16, 3, 8] clamped to a range per head and rounded to 255 steps of it, in float64."""
    heads = x.double().reshape(16, 3, 8).transpose(0, 1).reshape(3, -1)
    step = (high - low)[:, None] / 255
    codes = ((heads.clamp(low[:, None], high[:, None]) - low[:, None]) / step).round()
    return (low[:, None] + codes * step).reshape(3, 16, 8).transpose(0, 1).reshape(-1)


def test_ranges_decay_as_mesas_do() -> None:
    codec = Running(bits=8, rounding="nearest", heads=3, dim=8, key="a")
    low = high = torch.zeros(0)
    for step, scale in enumerate((1.0, 3.0, 0.5, 0.5, 2.0)):
        x = steps_of(scale, step)
        heads = x.double().reshape(16, 3, 8)
        least, most = heads.amin((0, 2)), heads.amax((0, 2))
        low, high = (least, most) if not step else (0.9 * low + 0.1 * least, 0.9 * high + 0.1 * most)
        y = through(codec, x)
        # bf16 widens zero and scale by 2⁻⁷ of the largest magnitude.
        slack = (high - low).max() / 255 + 2**-6 * torch.maximum(low.abs(), high.abs()).max()
        assert (y - by_hand(x, low, high)).abs().max() <= slack
        torch.testing.assert_close(ranges.state_dict()["a"].double(), torch.stack((low, high)), rtol=1e-6, atol=1e-6)


def test_values_outside_clamp_to_the_nearest_end() -> None:
    """Mesa's 8-bit codes wrap around above the range: there the largest values come back as the lowest."""
    for bits in (2, 8):
        for rounding in ("nearest", "stochastic"):
            codec = Running(bits=bits, rounding=rounding, heads=1, dim=4, decay=0.999, key=f"{bits}{rounding}")  # type: ignore[arg-type]
            through(codec, torch.linspace(-1, 1, 64))
            y = through(codec, torch.cat((torch.full((32,), 50.0), torch.full((32,), -50.0))))
            low, high = ranges.state_dict()[codec.key][:, 0]
            ends = torch.cat((high.expand(32), low.expand(32)))
            assert (y - ends).abs().max() <= 0.02 * (high - low)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 2.0**126])
def test_a_head_that_is_not_finite_moves_nothing_and_no_other_head(bad: float) -> None:
    codec, x = Running(heads=3, dim=8, key="a"), steps_of(1.0, 0)
    for fresh in (True, False):
        if not fresh:
            through(codec, x)
        before = ranges.state_dict()
        spoilt = x.clone()
        spoilt[3 * 8 + 8] = bad
        y = through(codec, spoilt).reshape(16, 3, 8)
        assert y[:, 1].isnan().all() and y[:, 0].isfinite().all() and y[:, 2].isfinite().all()
        after = ranges.state_dict()["a"][:, 1]
        assert after.isnan().all() if fresh else torch.equal(after, before["a"][:, 1])
        if fresh:
            assert through(codec, x).isfinite().all()
            ranges.clear()


def test_a_payload_keeps_the_range_that_it_was_made_with() -> None:
    codec, x = Running(heads=3, dim=8, key="a"), steps_of(1.0, 0)
    parts = codec.encode(x, 1)
    y = codec.decode(parts, x.shape[-1], x.dtype)
    for seed in range(3):
        codec.encode(steps_of(20.0, seed), 1)
    assert torch.equal(codec.decode(parts, x.shape[-1], x.dtype), y)


def test_rows_share_a_range_and_the_batch_may_change() -> None:
    codec = Running(rounding="nearest", heads=3, dim=8, key="a")
    rows = torch.stack([steps_of(scale, 1) for scale in (1.0, 4.0)])
    codec.encode(rows, 1)
    known = ranges.state_dict()["a"]
    assert torch.equal(known[1], rows.reshape(2, 16, 3, 8).amax((0, 1, 3)))
    codec.encode(torch.cat((rows, rows, rows)), 1)
    assert torch.allclose(ranges.state_dict()["a"], known)


def test_without_a_key_it_is_affine_with_heads() -> None:
    x = torch.stack([steps_of(1.0, 0), steps_of(2.0, 1)])
    for rounding in ("nearest", "stochastic"):
        one, two = Running(rounding=rounding, heads=3, dim=8), Affine(bits=8, rounding=rounding, heads=3, dim=8)  # type: ignore[arg-type]
        assert one.fields(x.shape[-1], x.dtype) == two.fields(x.shape[-1], x.dtype)
        for ours, theirs in zip(one.encode(x, 7), two.encode(x, 7), strict=True):
            assert torch.equal(ours, theirs)
    assert not ranges.state_dict()


def test_checkpoints_continue_where_they_were_saved() -> None:
    codec = Running(rounding="nearest", heads=3, dim=8, key="a")
    for seed in range(3):
        codec.encode(steps_of(seed + 1.0, seed), 1)
    saved = ranges.state_dict()
    expected = through(codec, steps_of(0.5, 9))
    assert not torch.equal(saved["a"], ranges.state_dict()["a"])
    ranges.load_state_dict(saved)
    assert torch.equal(through(codec, steps_of(0.5, 9)), expected)
    ranges.load_state_dict({})
    assert not ranges.state_dict()
    with pytest.raises(ValueError, match=r"'a' is .*\(3,\)"):
        ranges.load_state_dict({"a": torch.zeros(3)})


@pytest.mark.parametrize("bad", [{"bits": 3}, {"rounding": "up"}, {"heads": 0}, {"decay": 1.0}, {"decay": -0.1}])
def test_what_it_does_not_take(bad: dict[str, object]) -> None:
    with pytest.raises(OptionError):
        Running(**bad)  # type: ignore[arg-type]
