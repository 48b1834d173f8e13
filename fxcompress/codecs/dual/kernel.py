"""DIVISION's two components in Triton, bit for bit what `reference` computes. Needs only Triton.

A program owns whole planes and reads the map once from memory. First a thread holds a cell, eight rows of eight
neighbours, for its mean and the range of what is left; then, with the planes in the cache, a thread holds the runs
whose codes share its bytes. Means and ranges go from one half to the other through memory, over a barrier.
"""

import triton
import triton.language as tl

from fxcompress.codecs.affine import decode_kernel
from fxcompress.codecs.affine import kernel as affine
from fxcompress.codecs.runs import load_run, philox, store_run

_SIDE = tl.constexpr(8)
_LARGEST = tl.constexpr(2.0**125)
_RESIDUAL_LARGEST = tl.constexpr(2.0**126)
_NAN_WORD = tl.constexpr(0x7FC00000)
_FIXED = tl.constexpr(0x4B000000)


@triton.jit
def _tree(x0, x1, x2, x3, x4, x5, x6, x7):
    """Sum of eight in the order of `maps.cell_means`: halves are added, three times."""
    return ((x0 + x4) + (x2 + x6)) + ((x1 + x5) + (x3 + x7))


@triton.jit
def _row_mean(x):
    """Sum of a run's eight elements, each divided by the 64 of its cell."""
    w = ()
    for i in tl.static_range(8):
        w += (x[i] * 0.015625,)
    return _tree(w[0], w[1], w[2], w[3], w[4], w[5], w[6], w[7])


@triton.jit
def _to_bf16(x):
    """The bits of fp32 rounded to the nearest bf16, ties to even, as int32; NaN stays NaN."""
    bits = x.to(tl.int32, bitcast=True)
    return tl.where(x == x, (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16, 0x7FC0)


@triton.jit
def _word(low, high, RECIPROCAL: tl.constexpr):
    """fp32 range of a plane's residual → its metadata, as `affine.reference.make_word`."""
    zero = affine._zero(low.to(tl.int32, bitcast=True))
    scale = affine._scale(zero, high, RECIPROCAL)
    word = scale.to(tl.int32, bitcast=True) | ((zero.to(tl.int32, bitcast=True) >> 16) & 0xFFFF)
    return tl.where((zero >= -_RESIDUAL_LARGEST) & (high <= _RESIDUAL_LARGEST), word, _NAN_WORD)


@triton.jit
def _places(base, n_planes, count, PLANES: tl.constexpr, EACH: tl.constexpr):
    """(plane, place in it up to count - 1, whether both exist), each `[PLANES·EACH, 1]`."""
    t = tl.arange(0, PLANES * EACH)[:, None]
    live = (t // EACH < n_planes - base) & (t % EACH < count)
    # Places past the end read the last one again: a mask would cost zeroed registers.
    return base + tl.minimum(t // EACH, n_planes - 1 - base), tl.minimum(t % EACH, count - 1), live


@triton.jit
def _mean_of(means_ptr, plane, run, down, across):
    """The mean, as fp32, of the cell in which a run of eight elements lies."""
    row = run // across
    cell = (row // _SIDE) * across + (run - row * across)
    bits = tl.load(means_ptr.to(tl.pointer_type(tl.int16)) + plane * (down * across) + cell).to(tl.int32) << 16
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def _split(
    x_ptr, means_ptr, word_ptr, base, n_planes, down, across, RECIPROCAL, PLANES: tl.constexpr, CELLS: tl.constexpr
):
    """Store the means of a program's planes, and the metadata of what is left."""
    plane, cell, live = _places(base, n_planes, down * across, PLANES, CELLS)
    row = cell // across
    first = row * across * (_SIDE * _SIDE) + (cell - row * across) * _SIDE
    offset = (plane * (down * across)).to(tl.int64) * (_SIDE * _SIDE)
    x = ()
    s = ()
    for u in tl.static_range(8):
        x += (load_run(x_ptr + offset, first + u * across * _SIDE, 0, 0.0, PLANES * CELLS, 1, True, False),)
        s += (_row_mean(x[u]),)
    mean = _to_bf16(_tree(s[0], s[1], s[2], s[3], s[4], s[5], s[6], s[7]))
    tl.store(means_ptr.to(tl.pointer_type(tl.int16)) + plane * (down * across) + cell, mean.to(tl.int16), mask=live)
    mean = (mean << 16).to(tl.float32, bitcast=True)
    low = tl.full((PLANES * CELLS, 1), float("inf"), tl.float32)
    high = tl.full((PLANES * CELLS, 1), float("-inf"), tl.float32)
    for u in tl.static_range(8):
        for i in tl.static_range(8):
            left = tl.where(tl.abs(x[u][i]) <= _LARGEST, x[u][i] - mean, float("nan"))
            low = tl.minimum(low, left)
            high = affine._nan_max(high, left)
    low = tl.reduce(tl.reshape(low, (PLANES, CELLS)), 1, affine._min, keep_dims=True)
    high = tl.reduce(tl.reshape(high, (PLANES, CELLS)), 1, affine._nan_max, keep_dims=True)
    p = tl.arange(0, PLANES)[:, None]
    tl.store(word_ptr + base + p, _word(low, high, RECIPROCAL), mask=p < n_planes - base)


@triton.jit(do_not_specialize=["n_planes", "salt"])
def encode(
    x_ptr,
    means_ptr,
    codes_ptr,
    word_ptr,
    n_planes,
    down,
    across,
    salt,
    BITS: tl.constexpr,
    STOCHASTIC: tl.constexpr,
    RECIPROCAL: tl.constexpr,
    PLANES: tl.constexpr,
    CELLS: tl.constexpr,
    RUNS: tl.constexpr,
):
    """Split and quantize contiguous maps `[n_planes, 8·down, 8·across]`.

    means bf16 `[n_planes, down·across]`, codes uint8 `[n_planes, 8·down·across·BITS]`, word int32 `[n_planes]`, all
    aligned to 16 bytes. CELLS and RUNS are powers of two of at least down·across and that times BITS, RECIPROCAL is
    `groups.reciprocal(levels)`.
    """
    HALF: tl.constexpr = 4 // BITS
    EXCESS: tl.constexpr = 0x4B4B0000 if STOCHASTIC else 0x4F000000
    base = tl.program_id(0) * PLANES
    _split(x_ptr, means_ptr, word_ptr, base, n_planes, down, across, RECIPROCAL, PLANES, CELLS)
    tl.debug_barrier()
    runs = down * across * BITS
    plane, run, live = _places(base, n_planes, runs, PLANES, RUNS)
    word = tl.load(word_ptr + plane)
    scale = (word & -65536).to(tl.float32, bitcast=True)
    zero = tl.where(word == _NAN_WORD, 0, word << 16).to(tl.float32, bitcast=True)
    inverse = affine._inverse(tl.where(word == _NAN_WORD, 0.0, scale))
    offset = (plane * (down * across)).to(tl.int64) * (_SIDE * _SIDE)
    key0 = tl.full((PLANES * RUNS, 1), salt, tl.int32).to(tl.uint32, bitcast=True)
    key1, index = word.to(tl.uint32, bitcast=True), plane.to(tl.uint32)
    first = tl.full((PLANES * RUNS, 1), -(EXCESS * (255 // (2**BITS - 1))) & 0xFFFFFFFF, tl.uint32)
    second = first
    for k in tl.static_range(HALF):
        if STOCHASTIC:
            noise = philox(key0, key1, index, (run + k * runs).to(tl.uint32))
        else:
            noise = (index, index, index, index)
        for h in tl.static_range(2):
            at = run + (k + h * HALF) * runs
            mean = _mean_of(means_ptr, plane, at, down, across)
            x = load_run(x_ptr + offset, at * _SIDE, 0, 0.0, PLANES * RUNS, 1, True, False)
            left = ()
            for i in tl.static_range(8):
                left += (x[i] - mean,)
            a, b = affine._unit(left, noise[2 * h], noise[2 * h + 1], zero, inverse, BITS, STOCHASTIC, 0)
            first += a * (1 << (k + h * HALF) * BITS)
            second += b * (1 << (k + h * HALF) * BITS)
    out_ptr = codes_ptr.to(tl.pointer_type(tl.uint32)) + plane.to(tl.int64) * (2 * runs) + run * 2
    out = tl.reshape(tl.join(first, second), (PLANES * RUNS, 2))
    tl.store(out_ptr + tl.arange(0, 2)[None, :], out, mask=live)


@triton.jit(do_not_specialize=["n_planes"])
def decode(
    means_ptr,
    codes_ptr,
    word_ptr,
    y_ptr,
    n_planes,
    down,
    across,
    BITS: tl.constexpr,
    PLANES: tl.constexpr,
    RUNS: tl.constexpr,
):
    """Inverse of `encode`."""
    base = tl.program_id(0) * PLANES
    runs = down * across * BITS
    dtype: tl.constexpr = y_ptr.dtype.element_ty
    plane, run, live = _places(base, n_planes, runs, PLANES, RUNS)
    word = tl.load(word_ptr + plane)
    scale = (word & -65536).to(tl.float32, bitcast=True)
    zero = (word << 16).to(tl.float32, bitcast=True)
    in_ptr = codes_ptr.to(tl.pointer_type(tl.uint32)) + plane.to(tl.int64) * (2 * runs) + run * 2
    w0, w1 = tl.split(tl.reshape(tl.load(in_ptr + tl.arange(0, 2)[None, :]), (PLANES * RUNS, 1, 2)))
    halves = (w0 & 0xFFFF | _FIXED, w0 >> 16 | _FIXED, w1 & 0xFFFF | _FIXED, w1 >> 16 | _FIXED)
    offset = (plane * (down * across)).to(tl.int64) * (_SIDE * _SIDE)
    for k in tl.static_range(8 // BITS):
        at = run + k * runs
        mean = _mean_of(means_ptr, plane, at, down, across)
        y = ()
        for h in tl.static_range(4):
            for i in tl.static_range(2):
                y += (decode_kernel.decoded(halves[h], i * 8 + k * BITS, scale, zero, BITS, 0, dtype) + mean,)
        store_run(y_ptr + offset, y, at * _SIDE, down * across * (_SIDE * _SIDE), live, PLANES * RUNS, 1, True)
