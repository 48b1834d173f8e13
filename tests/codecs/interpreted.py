"""The Triton kernels against the reference, bit for bit, under Triton's interpreter. Run by test_kernels.py.

The interpreter must be chosen before the kernels are imported: these tests need a process of their own.
"""

import itertools
import math

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder

from fxcompress import codecs, compat, pipeline
from fxcompress.codecs import lowering
from fxcompress.codecs.affine import Affine, kernel
from fxcompress.codecs.base import Codec
from fxcompress.codecs.block2d import Block2d
from fxcompress.codecs.dual import Dual
from fxcompress.codecs.groups import LARGEST
from fxcompress.options import Options
from fxcompress.testing_graphs import capture, run

# Triton 3.6 interprets a maximum that prefers numbers as one that prefers NaN; on a GPU it is what 3.9 makes of it.
InterpreterBuilder.create_maxnumf = lambda self, left, right: self.binary_op(left, right, np.fmax)
InterpreterBuilder.create_minnumf = lambda self, left, right: self.binary_op(left, right, np.fmin)
FLOATS = (torch.float32, torch.bfloat16, torch.float16)
CODECS = [
    Affine(bits=bits, rounding=rounding, **{keeps: True for keeps in kept})
    for bits, rounding, kept in itertools.product(
        (1, 2, 4, 8), ("stochastic", "nearest"), ((), ("zero_preserving",), ("sign_preserving",))
    )
    if bits > 1 or not kept
]
GROUPS = [Affine(bits=2, group=32), Affine(bits=8, group=16), Affine(bits=1, group=256), Affine(bits=4, group=512)]


def kernels(codec: Codec, cols: int, dtype: torch.dtype) -> lowering.Kernels:
    found = lowering.find(codec, cols, dtype)
    assert found is not None
    return found


def same(one: torch.Tensor, two: torch.Tensor) -> bool:
    """Equal shape, dtype and bits, but for the payload of NaN."""
    if one.is_floating_point() and not torch.equal(one.isnan(), two.isnan()):
        return False
    return one.shape == two.shape and one.dtype == two.dtype and torch.equal(one.nan_to_num(7), two.nan_to_num(7))


def stored(y: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """What the interpreter of Triton 3.9 stores for fp32 `y`: it truncates to bf16, where a GPU rounds."""
    if dtype == torch.bfloat16:
        y = (y.view(torch.int32) & -65536).view(torch.float32)
    return y.to(dtype)


def check(codec: Affine | Block2d, x: torch.Tensor, salt: int = 1) -> None:
    cols = x.shape[-1]
    ours = kernels(codec, cols, x.dtype)
    codes, word = ours.encode(x, salt)
    wanted_codes, wanted_word = codec.encode(x, salt)
    assert torch.equal(word, wanted_word)
    finite = (word != 0x7FC00000) & (word != 0x7FC07FC0)
    assert torch.equal(codes[finite], wanted_codes[finite])
    wide = codec.decode((wanted_codes, word), cols, torch.float32)
    if x.dtype == torch.bfloat16:
        assert same(ours.decode((codes, word), cols, torch.float32), wide)
    clamped = codec.decode((wanted_codes, word), cols, x.dtype).float() if x.dtype == torch.float16 else wide
    # The interpreter also turns denormal bf16 into other numbers.
    normal = (wide == 0) | (wide.abs() >= 2.0**-126) | wide.isnan() | (x.dtype != torch.bfloat16)
    y = ours.decode((codes, word), cols, x.dtype)
    assert same(y[normal], stored(clamped, x.dtype)[normal])


def gaussian(shape: tuple[int, ...], dtype: torch.dtype, codec: Affine | Block2d) -> torch.Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(shape[-1]))
    return (x.relu() if codec.zero_preserving else x).to(dtype)


def awkward(codec: Affine, dtype: torch.dtype) -> torch.Tensor:
    """`[22, 2·group]`: each row but the first has something special in its second group."""
    group = codec.group
    tiny = torch.finfo(dtype).smallest_normal
    x = gaussian((22, 2 * group), torch.float32, codec)
    half = x[:, group:]
    for row, value in enumerate((0.0, -0.0, 1.0, 0.3359375, 65280.0, math.nan, math.inf, 1e30, -math.nan), 1):
        half[row] = value
    for row, value in enumerate((math.nan, math.inf, -math.inf, 6e4, 2.0**126, -LARGEST), 10):
        half[row, group // 3] = abs(value) if codec.zero_preserving else value
    half[16] *= tiny
    half[17] *= tiny / 16
    half[18] = torch.arange(group) % 2 * -0.0
    half[19] = torch.arange(group) / 7
    half[20] += 1000
    half[21, 1:] = 0
    return x.to(dtype)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("codec", CODECS, ids=str)
def test_awkward_values(codec: Affine, dtype: torch.dtype) -> None:
    check(codec, awkward(codec, dtype))


@pytest.mark.parametrize(("index", "codec"), list(enumerate(CODECS)), ids=str)
@pytest.mark.parametrize("cols", [(63, 1000), (65, 1)], ids=str)
def test_odd_sizes(codec: Affine, index: int, cols: tuple[int, int]) -> None:
    check(codec, gaussian((3, cols[index % 2]), FLOATS[index % 3], codec))


@pytest.mark.parametrize("codec", GROUPS, ids=str)
def test_groups(codec: Affine) -> None:
    for dtype, cols in ((torch.bfloat16, 2 * codec.group), (torch.float32, codec.group + 8)):
        check(codec, gaussian((2, cols), dtype, codec))


@pytest.mark.parametrize("salt", [0, 1, 2**31 + 5, 2**32 - 1, 2**40 + 3])
def test_salts(salt: int) -> None:
    check(Affine(bits=2), gaussian((2, 128), torch.bfloat16, CODECS[0]), salt)


@pytest.mark.parametrize("cols", [64, 72])
def test_groups_beyond_the_first_program(cols: int) -> None:
    check(Affine(bits=2), gaussian((140, cols), torch.bfloat16, CODECS[0]))


def test_rows_that_start_at_an_odd_element() -> None:
    x = gaussian((1, 257), torch.bfloat16, CODECS[0])[:, 1:]
    assert x.is_contiguous() and x.data_ptr() % 4
    check(Affine(bits=2), x)


def test_lead_dimensions_and_strides() -> None:
    x = gaussian((2, 128, 3), torch.float32, CODECS[0]).transpose(1, 2)
    check(Affine(bits=4), x)


@pytest.mark.parametrize(
    ("index", "codec"), [each for each in enumerate(CODECS) if not each[1].sign_preserving], ids=str
)
def test_cells_of_maps(index: int, codec: Affine) -> None:
    cells = Block2d(16, 24, 1, codec.bits, 8, codec.rounding, codec.zero_preserving)
    x = gaussian((2, 3 * 16 * 24), torch.float32, cells)
    # Cells that hold Inf, a constant, NaN alone, and tiny values.
    x[0, 5], x[1, :384] = math.inf, 0.3359375
    x[1, 384 + 8 * 24 : 768] *= torch.finfo(FLOATS[index % 3]).smallest_normal
    x[0, 768:] = math.nan
    check(cells, x.to(FLOATS[index % 3]))


def test_cells_beyond_the_first_program_and_of_a_row_that_starts_anywhere() -> None:
    check(Block2d(8, 8), gaussian((130, 64), torch.bfloat16, CODECS[0]))
    check(Block2d(8, 16), gaussian((1, 129), torch.float32, CODECS[0])[:, 1:])


@pytest.mark.parametrize(
    ("codec", "dtype"),
    [
        (Dual(8, 8), torch.bfloat16),
        (Dual(16, 16, bits=4), torch.float16),
        (Dual(24, 40, rounding="nearest"), torch.float32),
    ],
    ids=str,
)
def test_planes(codec: Dual, dtype: torch.dtype) -> None:
    """Planes that hold Inf, a constant, NaN alone; offsets; more planes than one program has."""
    size = codec.height * codec.width
    x = torch.randn(2, 66 * size, generator=torch.Generator().manual_seed(size)).view(2, 66, size)
    x[0, 0, 5], x[0, 1], x[0, 2], x[1, :9] = math.inf, 1.5, math.nan, x[1, :9] + 100
    rows = x.view(2, -1)[:, : (66 if size == 64 else 3) * size].to(dtype).contiguous()
    ours = kernels(codec, rows.shape[-1], dtype)
    parts, wanted = ours.encode(rows, 5), codec.encode(rows, 5)
    finite = wanted[2] != 0x7FC00000
    assert torch.equal(parts[2], wanted[2]) and not finite.all()
    assert all(same(one[finite], two[finite]) for one, two in zip(parts, wanted, strict=True))
    cols = rows.shape[-1]
    assert same(ours.decode(parts, cols, torch.float32), codec.decode(wanted, cols, torch.float32))


@triton.jit
def invert(scale_ptr, out_ptr, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    tl.store(out_ptr + at, kernel._inverse(tl.load(scale_ptr + at)))


def test_the_inverse_is_correctly_rounded_for_every_scale() -> None:
    bits = torch.arange(2**15, dtype=torch.int32) << 16
    scale = bits.view(torch.float32)
    usable = (scale >= 2.0**-126) & (scale <= 2.0**126) | (scale == 0)
    scale = torch.where(usable, scale, 0.0)
    out = torch.empty_like(scale)
    invert[(1,)](scale, out, SIZE=2**15)
    expected = torch.where(scale > 0, 1 / scale, 0.0)
    assert torch.equal(out, expected) and usable.sum() > 32000


@pytest.mark.parametrize("shape", [(1, 64), (3, 2, 128), (130, 64)])
def test_masks(shape: tuple[int, ...]) -> None:
    codec = codecs.make("valueset")
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)) > 0
    ours = kernels(codec, shape[-1], torch.bool)
    (bits,) = ours.encode(x, 0)
    assert same(bits, codec.encode(x, 0)[0])
    assert same(ours.decode((bits,), shape[-1], torch.bool), x)


@pytest.mark.parametrize(
    ("codec", "dtype"), [(Affine(bits=2), torch.float32), (codecs.make("valueset"), torch.bool)], ids=str
)
def test_traced_graphs_compute_what_they_were_traced_from(codec: Codec, dtype: torch.dtype) -> None:
    x = (torch.randn(3, 128, generator=torch.Generator().manual_seed(2)) * 2).to(dtype)
    encode, decode = lowering.trace(kernels(codec, 128, dtype), x)
    for node in compat.triton_nodes(encode.graph):
        lowering.set_salt(node, 77)
    encode.recompile()
    parts = encode(x)
    for one, two in zip(parts, codec.encode(x, 77), strict=True):
        assert same(one, two)
    assert same(decode(*parts)[0], codec.decode(parts, 128, dtype))


def products(x: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
    for weight in weights:
        x = torch.nn.functional.gelu(x @ weight)
    return x


def scaled_maps(x: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
    """Without convolutions, whose results lie in channels_last order on a CPU."""
    for weight in weights:
        x = torch.nn.functional.gelu(x * weight).cumsum(-1)
    return x


@pytest.mark.parametrize("codec", ["affine", "block2d", "dual"])
def test_a_rewritten_pair_computes_the_same_with_kernels_and_without(
    codec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    x, weights = torch.randn(32, 64, requires_grad=True), [torch.randn(64, 64) / 8 for _ in range(2)]
    if codec != "affine":
        x, weights = torch.randn(2, 4, 16, 8, requires_grad=True), [torch.randn(4, 1, 1) for _ in range(3)]
    pair = capture(products if codec == "affine" else scaled_maps, [x, *weights])
    options = Options(
        min_bytes=64, bits=4, operand_bits=4, codec=codec, rounding="stochastic", disable_passes=("outline",)
    )
    ran = []
    for on_gpu in (False, True):
        monkeypatch.setattr(lowering, "wanted", lambda _, on_gpu=on_gpu: on_gpu)
        copy = pair.copy()
        pipeline.run(copy.fw, copy.bw, options)
        assert bool(compat.triton_nodes(copy.fw.graph)) == on_gpu
        ran.append(run(copy))
    aten, kernels = ran
    assert len(kernels.saved) == len(aten.saved) > 2
    assert all(same(one, two) for one, two in zip(kernels.saved, aten.saved, strict=True))
    assert all(same(one, two) for one, two in zip(kernels.gradients, aten.gradients, strict=True) if one is not None)
