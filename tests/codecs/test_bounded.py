"""The bound of error-bounded codes holds for whatever fits the rate, in every dtype; zeros are zeros."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fxcompress.codecs.base import payload_nbytes
from fxcompress.codecs.bounded import Bounded, live, reference
from fxcompress.errors import OptionError
from fxcompress.testing import FLOATS, check_roundtrip

ORDINARY = st.floats(-1e4, 1e4, width=32)
ANY = st.floats(-(2.0**125), 2.0**125, width=32)
BITS = st.sampled_from((2, 4, 8))


def exceeded(codec: Bounded, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Per group: whether some element misses `eps` (in exact arithmetic), and whether the codec says that it may."""
    parts = codec.encode(x, 1)
    y = codec.decode(parts, x.shape[-1], x.dtype)
    missing = -x.shape[-1] % codec.group
    error = torch.nn.functional.pad((y.double() - x.double()).abs(), (0, missing))
    worst = error.reshape(*x.shape[:-1], -1, codec.group).amax(-1)
    # A step above twice the bound is what the payload states for a group that does not fit at the bound.
    step = (parts[1].view(torch.bfloat16).reshape(*parts[1].shape, 2))[..., 1].double()
    return worst > codec.eps, step > 2 * codec.eps * reference.SAFETY


@settings(deadline=None, max_examples=500)
@given(st.lists(ANY | ORDINARY, min_size=1, max_size=48), BITS, st.floats(2.0**-20, 100), st.sampled_from(FLOATS))
def test_the_bound_or_a_stated_wider_one(values: list[float], bits: int, eps: float, dtype: torch.dtype) -> None:
    x = torch.tensor(values, dtype=torch.float64)
    x = (x.clamp(-65504, 65504) if dtype == torch.float16 else x).to(dtype)
    codec = Bounded(eps=eps, bits=bits, group=16, spare=0)
    missed, stated = exceeded(codec, x)
    assert not (missed & ~stated).any()
    parts = codec.encode(x, 1)
    y = codec.decode(parts, len(values), dtype)
    assert torch.equal(y[x == 0], x[x == 0])
    if dtype in (torch.float32, torch.float64):
        bound = reference.stated_bound(parts[1]).double().repeat_interleave(16)[: len(values)]
        assert ((y.double() - x.double()).abs() <= bound).all()


def generated(number: int, generator: torch.Generator) -> torch.Tensor:
    """One of ten kinds of data, [1000, 64]: a thousand tensors."""
    x = torch.randn(1000, 64, generator=generator)
    scale = torch.rand(1000, 1, generator=generator)
    kinds = (
        lambda: x, x.relu, lambda: torch.nn.functional.gelu(x), x.tanh, lambda: x.cumsum(-1) / 8,
        lambda: x * 4**scale, lambda: x * (torch.rand(1000, 64, generator=generator) > 0.9), lambda: x.round(),
        lambda: 3 * scale + 0.1 * x, lambda: torch.where(x.abs() > 2.5, 1e4 * x, x),
    )  # fmt: skip
    return kinds[number % len(kinds)]()


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_bound_in_a_hundred_thousand_tensors(bits: int, dtype: torch.dtype) -> None:
    """Each row is a tensor of its own with its own room; all that fit the rate keep the bound, and most do fit."""
    generator = torch.Generator().manual_seed(bits)
    fitting = total = 0
    for number in range(100):
        x = generated(number, generator).to(dtype)
        eps = float(2.0 ** torch.randint(-12, 3, (), generator=generator))
        codec = Bounded(eps=eps, bits=bits, group=16, spare=4)
        missed, stated = exceeded(codec, x)
        assert not (missed & ~stated).any()
        y = codec.decode(codec.encode(x, 1), 64, dtype)
        assert (y[x == 0] == 0).all()
        fitting, total = fitting + int((~missed).sum()), total + missed.numel()
    assert fitting > total / 5


def test_room_goes_to_the_groups_that_need_it_most() -> None:
    x = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    x[7, 3], x[40, 0] = 1e6, -3e5
    codec = Bounded(eps=0.25, bits=4, group=64, spare=32)
    codes, word, raw, index = codec.encode(x.reshape(-1), 1)
    assert sorted(index.tolist()) == [7, 40] and raw.shape == (2, 64)
    y = codec.decode((codes, word, raw, index), x.numel(), x.dtype).reshape(x.shape)
    assert torch.equal(y[[7, 40]], x[[7, 40]]) and float((y - x).abs().max()) <= 0.25


@pytest.mark.parametrize("spare", [1, 2, 5])
def test_of_equals_the_first_get_the_room(spare: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which of equals `topk` takes, and in what order, is the device's; the payload is not."""
    codec = Bounded(eps=0.01, bits=4, group=16, spare=spare)
    # Three kinds of groups in any order, one of them not finite.
    kind = torch.randint(0, 3, (5, 40), generator=torch.Generator().manual_seed(0))
    pattern = torch.linspace(-1, 1, 16)
    x = torch.stack([pattern, 50 * pattern, torch.inf * pattern])[kind].flatten(-2)
    parts = codec.encode(x, 1)
    need = torch.tensor([1, 0, 2])[kind]
    assert torch.equal(parts[3], need.argsort(dim=-1, stable=True)[:, : 40 // spare].int())

    def last_first(values: torch.Tensor, count: int, dim: int) -> torch.return_types.topk:
        found, index = torch.sort(values.flip(dim), dim=dim, descending=True, stable=True)
        return torch.return_types.topk((found[..., :count], values.shape[dim] - 1 - index[..., :count]))

    monkeypatch.setattr(torch.Tensor, "topk", last_first)
    for one, two in zip(codec.encode(x, 1), parts, strict=True):
        assert torch.equal(one.view(torch.uint8), two.view(torch.uint8))


def test_bytes_are_the_formula() -> None:
    """bits + 32/group + (bits of the dtype + 32/group)/spare per element."""
    cols = 64 * 64 * 10
    assert payload_nbytes(Bounded(bits=4, spare=0), 1, cols, torch.float32) == cols * (4 + 32 / 64) / 8
    expected = cols * (4 + 32 / 64 + (32 + 32 / 64) / 64) / 8
    assert payload_nbytes(Bounded(bits=4, spare=64), 1, cols, torch.float32) == expected
    assert 32 / (8 * expected / cols) > 6


def test_a_relative_bound_counts_in_root_mean_squares_of_finite_elements() -> None:
    x = 3 * torch.randn(2, 4096, generator=torch.Generator().manual_seed(1))
    x[1] *= 1e20
    codec = Bounded(eps=0.25, bits=4, relative=True)
    error = (check_roundtrip(codec, x) - x).abs().amax(-1)
    assert (error <= 0.25 * x.double().square().mean(-1).sqrt()).all()
    x[0, 100] = float("inf")
    y = codec.decode(codec.encode(x, 1), 4096, x.dtype)
    assert y[0, 64:128].isnan().all() and y.isnan().sum() == 64


def test_a_bound_is_changed_by_name_between_encodes() -> None:
    x = torch.randn(4096, generator=torch.Generator().manual_seed(2))
    codec = Bounded(eps=0.5, bits=8, key="here")
    try:
        wide = codec.encode(x, 1)
        live.set_bound("elsewhere", 1e-3)
        assert torch.equal(codec.encode(x, 1)[1], wide[1])
        live.set_bound("here", 0.03)
        narrow = codec.encode(x, 1)
        errors = [float((codec.decode(parts, 4096, x.dtype) - x).abs().max()) for parts in (wide, narrow)]
        assert 0.4 < errors[0] <= 0.5 and 0.02 < errors[1] <= 0.03
        assert live.bounds() == {"elsewhere": 1e-3, "here": 0.03}
    finally:
        live.clear()
    assert torch.equal(codec.encode(x, 1)[1], wide[1])
    with pytest.raises(ValueError, match="positive"):
        live.set_bound("here", 0.0)


@pytest.mark.parametrize(
    "params",
    [
        {"eps": 0.0}, {"eps": float("nan")}, {"eps": "0.1"}, {"bits": 1}, {"bits": 3}, {"group": 24}, {"group": 0},
        {"spare": -1}, {"key": "x", "relative": True},
    ],
    ids=str,
)  # fmt: skip
def test_wrong_configurations_are_refused(params: dict[str, object]) -> None:
    with pytest.raises(OptionError, match="bounded"):
        Bounded(**params)  # type: ignore[arg-type]
