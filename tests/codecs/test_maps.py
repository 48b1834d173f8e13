"""Codecs that store maps, against torch's own pooling and interpolation and against loops over cells."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from fxcompress import codecs
from fxcompress.codecs import maps
from fxcompress.codecs.affine import Affine
from fxcompress.codecs.base import payload_nbytes
from fxcompress.codecs.block2d import Block2d
from fxcompress.codecs.dual import Dual
from fxcompress.errors import OptionError

SHAPES = [(8, 8), (16, 16), (16, 24), (28, 28), (7, 7), (5, 3), (3, 20), (1, 1), (2, 64), (33, 9)]
SIZES = st.integers(1, 20)


def images(outer: int, height: int, width: int, inner: int, seed: int = 0) -> torch.Tensor:
    """[outer, height, width, inner], smooth plus noise."""
    generator = torch.Generator().manual_seed(seed)
    rough = torch.randn(outer, height, width, inner, generator=generator)
    return rough + torch.linspace(-3, 3, height)[:, None, None] * torch.linspace(0, 2, width)[:, None]


def plane_by_plane(x: torch.Tensor, inner: int) -> torch.Tensor:
    """[outer, height, width, inner] as torch's own layout of maps, [outer, inner, height, width]."""
    return x.permute(0, 3, 1, 2).contiguous()


@settings(deadline=None, max_examples=150)
@given(st.integers(1, 3), SIZES, SIZES, st.integers(1, 3), st.integers(1, 9), st.integers(1, 9))
def test_planes_and_cells_round_trip(outer: int, height: int, width: int, inner: int, tall: int, wide: int) -> None:
    x = images(outer, height, width, inner)
    planes = maps.to_planes(x.reshape(1, -1), height, width, inner)
    expected = plane_by_plane(x, inner).reshape(1, outer * inner, height, width)
    assert torch.equal(planes, expected)
    cell = min(tall, height), min(wide, width)
    cells = maps.to_cells(planes, cell)
    assert torch.equal(maps.from_cells(cells, cell, height, width), planes)
    assert torch.equal(maps.from_planes(planes, inner), x.reshape(1, -1))
    # Repeated edges bring no value that the cell does not have.
    covered = [
        planes[..., top : top + cell[0], left : left + cell[1]]
        for top in range(0, height, cell[0])
        for left in range(0, width, cell[1])
    ]
    for number, part in enumerate(covered):
        assert torch.equal(cells[..., number, :].amin(-1), part.amin((-2, -1)))
        assert torch.equal(cells[..., number, :].amax(-1), part.amax((-2, -1)))


@pytest.mark.parametrize(("height", "width"), SHAPES)
def test_means_and_their_spread_are_torchs_pooling_and_interpolation(height: int, width: int) -> None:
    x = images(2, height, width, 3)
    planes = plane_by_plane(x, 3)
    cell = min(8, height), min(8, width)
    means = maps.cell_means(planes, cell)
    # ceil_mode and no counting of what is outside: the mean over the part of a ragged cell that exists.
    pooled = F.avg_pool2d(planes, cell, cell, ceil_mode=True, count_include_pad=False)
    torch.testing.assert_close(means, pooled, rtol=1e-5, atol=1e-6)
    up = F.interpolate(means, scale_factor=cell, mode="nearest")[..., :height, :width]
    assert torch.equal(maps.spread(means, cell, height, width), up)


@pytest.mark.parametrize(("height", "width"), SHAPES)
@pytest.mark.parametrize("inner", [1, 3])
@pytest.mark.parametrize("bits", [1, 2, 4])
def test_dual_is_divisions_equation(height: int, width: int, inner: int, bits: int) -> None:
    """L in bf16 by avg_pool2d, H with one range per (sample, channel), within one step of it."""
    x = images(2, height, width, inner)
    codec = Dual(height=height, width=width, inner=inner, bits=bits)
    parts = codec.encode(x.reshape(-1), 3)
    y = codec.decode(parts, x.numel(), x.dtype).reshape(x.shape)
    planes, decoded = plane_by_plane(x, inner), plane_by_plane(y, inner)
    cell = min(8, height), min(8, width)
    low = F.avg_pool2d(planes, cell, cell, ceil_mode=True, count_include_pad=False).to(torch.bfloat16).float()
    up = F.interpolate(low, scale_factor=cell, mode="nearest")[..., :height, :width]
    high = planes - up
    step = (high.amax((2, 3)) - high.amin((2, 3)) + high.abs().amax((2, 3)) * 2**-7) * (1 + 2**-7) / (2**bits - 1)
    # bf16 may round a mean that differs in its last fp32 bit the other way: one unit of it in the mean, at most.
    slack = planes.abs().amax() * 2**-7
    assert ((decoded - planes).abs().amax((2, 3)) <= step + slack).all()
    stored = parts[0].float().reshape(low.shape)
    torch.testing.assert_close(stored, low, rtol=2**-7, atol=1e-6)
    kept = decoded - F.interpolate(stored, scale_factor=cell, mode="nearest")[..., :height, :width]
    assert all(len(plane.round(decimals=4).unique()) <= 2**bits for plane in kept.flatten(0, 1))


def test_dual_bytes_are_the_formula() -> None:
    """bits + 16/cell + 32/plane bits per element, where cells and words are whole."""
    for height, width, bits in ((8, 8, 2), (16, 16, 2), (32, 32, 4), (16, 32, 1)):
        codec, planes = Dual(height=height, width=width, bits=bits), 6
        cols = planes * height * width
        expected = planes * (height * width * bits / 8 + (height // 8) * (width // 8) * 2 + 4)
        assert payload_nbytes(codec, 1, cols, torch.float32) == expected
    assert 4 * 256 / payload_nbytes(Dual(height=16, width=16), 1, 256, torch.float32) >= 9
    # 49 elements take 4 words of 16 codes: 16 bytes, one mean and one word.
    assert payload_nbytes(Dual(height=7, width=7), 1, 49, torch.float32) == 16 + 2 + 4


def test_block2d_bytes_are_the_formula() -> None:
    assert payload_nbytes(Block2d(height=16, width=16), 1, 256, torch.float32) == 4 * (16 + 4)
    assert payload_nbytes(Block2d(height=256, width=1, inner=4), 1, 1024, torch.float32) == 16 * (16 + 4)
    assert payload_nbytes(Block2d(height=9, width=8), 1, 72, torch.float32) == 2 * (16 + 4)


@pytest.mark.parametrize("rounding", ["stochastic", "nearest"])
@pytest.mark.parametrize("zero_preserving", [False, True])
def test_block2d_is_affine_on_each_cell(rounding: str, zero_preserving: bool) -> None:
    """An 8 x 8 cell cut out by hand and stored as a group of 64 decodes alike (nearest), or to the same levels."""
    x = images(2, 16, 24, 1)
    x = x.relu() if zero_preserving else x
    codec = Block2d(height=16, width=24, bits=2, rounding=rounding, zero_preserving=zero_preserving)  # type: ignore[arg-type]
    alone = Affine(bits=2, group=64, rounding=rounding, zero_preserving=zero_preserving)  # type: ignore[arg-type]
    y = codec.decode(codec.encode(x.reshape(-1), 1), x.numel(), x.dtype).reshape(x.shape)
    for outer in range(2):
        for top in range(0, 16, 8):
            for left in range(0, 24, 8):
                cell = x[outer, top : top + 8, left : left + 8, 0].reshape(-1)
                got = y[outer, top : top + 8, left : left + 8, 0].reshape(-1)
                expected = alone.decode(alone.encode(cell, 1), 64, x.dtype)
                if rounding == "nearest":
                    assert torch.equal(got, expected)
                assert ((got - cell).abs() <= cell.max() - cell.min()).all()
                assert not zero_preserving or torch.equal(got == 0, cell == 0)


def test_block2d_along_tokens_groups_each_channel() -> None:
    x = images(2, 100, 1, 5)
    codec = Block2d(height=100, width=1, inner=5, bits=4, rounding="nearest")
    y = codec.decode(codec.encode(x.reshape(-1), 1), x.numel(), x.dtype).reshape(x.shape)
    alone = Affine(bits=4, group=64, rounding="nearest")
    for outer in range(2):
        for channel in range(5):
            column = x[outer, :64, 0, channel]
            expected = alone.decode(alone.encode(column, 1), 64, x.dtype)
            assert torch.equal(y[outer, :64, 0, channel], expected)


@pytest.mark.parametrize("name", ["dual", "block2d"])
@pytest.mark.parametrize("inner", [1, 3])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf"), 2.0**126])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_non_finite_values_stay_in_their_plane_or_cell(name: str, inner: int, bad: float, dtype: torch.dtype) -> None:
    codec = codecs.make(name, height=12, width=16, inner=inner)
    x = images(2, 12, 16, inner).to(dtype)
    clean = codec.decode(codec.encode(x.reshape(-1), 1), x.numel(), dtype).reshape(x.shape)
    x[1, 9, 10, inner - 1] = bad
    y = codec.decode(codec.encode(x.reshape(-1), 1), x.numel(), dtype).reshape(x.shape)
    hit = torch.zeros_like(x, dtype=torch.bool)
    if name == "dual":
        hit[1, :, :, inner - 1] = True
    else:
        hit[1, 8:, 8:, inner - 1] = True
    assert y[hit].isnan().all() and torch.equal(y[~hit], clean[~hit])


@pytest.mark.parametrize("name", ["dual", "block2d"])
def test_a_huge_constant_is_not_taken_for_a_small_residual(name: str) -> None:
    codec = codecs.make(name)
    x = torch.full((64,), 2.0**126)
    assert codec.decode(codec.encode(x, 1), 64, x.dtype).isnan().all()


@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("name", ["dual", "block2d"])
def test_stochastic_rounding_is_unbiased(name: str, bits: int) -> None:
    codec = codecs.make(name, height=16, width=16, bits=bits)
    x, salts = images(4, 16, 16, 1).reshape(-1), 256
    errors = torch.stack([codec.decode(codec.encode(x, salt), x.numel(), x.dtype) - x for salt in range(salts)])
    step = float((x.amax() - x.amin()) / (2**bits - 1))
    assert float(errors.mean(0).abs().max()) < 5 * 0.5 * step * salts**-0.5 + step / 256
    assert abs(float(errors.mean())) < 4 * 0.5 * step * errors.numel() ** -0.5 + step / 2000


def test_block_means_survive_dual() -> None:
    """The mean of a decoded cell is its stored mean, up to the mean of the residual's rounding errors."""
    x = images(3, 16, 16, 2)
    codec = Dual(height=16, width=16, inner=2, bits=4, rounding="nearest")
    parts = codec.encode(x.reshape(-1), 1)
    y = plane_by_plane(codec.decode(parts, x.numel(), x.dtype).reshape(x.shape), 2)
    pooled = F.avg_pool2d(y, 8)
    half_step = (parts[2] >> 16 << 16).view(torch.float32).reshape(3, 2) / 2
    error = (pooled - parts[0].float().reshape(pooled.shape)).abs().amax((2, 3))
    assert (error <= half_step * 1.01 + 2**-7 * x.abs().max()).all()


@pytest.mark.parametrize("name", ["dual", "block2d"])
def test_maps_that_do_not_fit_are_refused(name: str) -> None:
    with pytest.raises(OptionError, match=f"{name}: a row of 100 elements"):
        codecs.make(name, height=8, width=8).fields(100, torch.float32)
    for wrong in ({"height": 0}, {"width": -1}, {"inner": True}, {"block": 2.0}, {"bits": 3}, {"rounding": "up"}):
        with pytest.raises(OptionError, match=name):
            codecs.make(name, **wrong)
