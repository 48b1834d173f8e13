"""Block2d in Triton: one read of the map, bit for bit what `reference` computes. Needs only Triton.

A cell is a group of `affine` whose eight runs of eight neighbours are rows of the map, a map's width apart. One thread
holds a cell: no element, range or byte crosses threads, and the rows that it reads are those that its neighbours read.
"""

import triton
import triton.language as tl

from fxcompress.codecs.affine import decode_kernel
from fxcompress.codecs.affine import kernel as affine
from fxcompress.codecs.runs import load_run, philox, store_run

_SIDE = tl.constexpr(8)
_FIXED = tl.constexpr(0x4B000000)


@triton.jit
def _cells(base, n_cells, down, across, TILE: tl.constexpr):
    """(offset of the plane as int64, first element of the cell in its plane), both `[TILE, 1]`."""
    # Cells past the end read the last one again: a mask would cost zeroed registers.
    cell = base + tl.minimum(tl.arange(0, TILE), n_cells - 1 - base)[:, None]
    plane = cell // (down * across)
    place = cell - plane * (down * across)
    row = place // across
    first = row * across * (_SIDE * _SIDE) + (place - row * across) * _SIDE
    return (plane * (down * across)).to(tl.int64) * (_SIDE * _SIDE), first


@triton.jit(do_not_specialize=["n_cells", "salt"])
def encode(
    x_ptr,
    codes_ptr,
    word_ptr,
    n_cells,
    down,
    across,
    salt,
    BITS: tl.constexpr,
    STOCHASTIC: tl.constexpr,
    KEEPS: tl.constexpr,
    RECIPROCAL: tl.constexpr,
    TILE: tl.constexpr,
):
    """Quantize contiguous maps `[planes, 8·down, 8·across]` into `n_cells` < 2³¹ cells of 8 x 8.

    codes uint8 `[n_cells, 8·BITS]`, word int32 `[n_cells]`; all aligned to 16 bytes. RECIPROCAL is
    `groups.reciprocal(levels)`.
    """
    RUNS: tl.constexpr = BITS
    HALF: tl.constexpr = 4
    base = tl.program_id(0) * TILE
    offset, first = _cells(base, n_cells, down, across, TILE)
    x = ()
    for u in tl.static_range(8):
        x += (load_run(x_ptr + offset, first + u * across * _SIDE, 0, 0.0, TILE, 1, True, False),)

    low = affine._key(x[0][0], KEEPS)
    high = x[0][0]
    for u in tl.static_range(8):
        for i in tl.static_range(8):
            low = tl.minimum(low, affine._key(x[u][i], KEEPS))
            high = affine._nan_max(high, x[u][i])
    word, zero, inverse = affine._metadata(low, high, KEEPS, RECIPROCAL)

    g = tl.arange(0, TILE)[:, None]
    live = g < n_cells - base
    tl.store(word_ptr + base + g, word, mask=live)
    key0 = tl.full((TILE, 1), salt, tl.int32).to(tl.uint32, bitcast=True)
    key1 = word.to(tl.uint32, bitcast=True)
    index = (base + g).to(tl.uint32)
    call = tl.zeros((TILE, 1), tl.uint32)
    out_ptr = codes_ptr.to(tl.pointer_type(tl.uint32)) + base.to(tl.int64) * (2 * BITS)
    out_ptr += g * (2 * BITS) + tl.arange(0, 2)[None, :]
    for r in tl.static_range(RUNS if BITS < 8 else HALF):
        start = affine._excess(index, BITS, STOCHASTIC)
        first0, first1, second0, second1 = start, start, start, start
        for p in tl.static_range(HALF // RUNS if BITS < 8 else 1):
            if STOCHASTIC:
                n0, n1, n2, n3 = philox(key0, key1, index, call + (p * RUNS + r))
            else:
                n0, n1, n2, n3 = index, index, index, index
            a, b = affine._unit(x[p * RUNS + r], n0, n1, zero, inverse, BITS, STOCHASTIC, KEEPS)
            first0 += a * (1 << p * BITS)
            first1 += b * (1 << p * BITS)
            a, b = affine._unit(x[HALF + p * RUNS + r], n2, n3, zero, inverse, BITS, STOCHASTIC, KEEPS)
            second0 += a * (1 << p * BITS)
            second1 += b * (1 << p * BITS)
        if BITS < 8:
            first0 += second0 * 16
            first1 += second1 * 16
        else:
            out = tl.reshape(tl.join(second0, second1), (TILE, 2))
            tl.store(out_ptr + (HALF + r) * 2, out, mask=live)
        out = tl.reshape(tl.join(first0, first1), (TILE, 2))
        tl.store(out_ptr + r * 2, out, mask=live)


@triton.jit(do_not_specialize=["n_cells"])
def decode(
    codes_ptr,
    word_ptr,
    y_ptr,
    n_cells,
    down,
    across,
    BITS: tl.constexpr,
    KEEPS: tl.constexpr,
    TILE: tl.constexpr,
):
    """Inverse of `encode`."""
    dtype: tl.constexpr = y_ptr.dtype.element_ty
    base = tl.program_id(0) * TILE
    offset, first = _cells(base, n_cells, down, across, TILE)
    g = tl.arange(0, TILE)[:, None]
    live = g < n_cells - base
    g = tl.minimum(g, n_cells - 1 - base)
    word = tl.load(word_ptr + base + g)
    scale = (word & -65536).to(tl.float32, bitcast=True)
    zero = (word << 16).to(tl.float32, bitcast=True)
    in_ptr = codes_ptr.to(tl.pointer_type(tl.uint32)) + base.to(tl.int64) * (2 * BITS)
    in_ptr += g * (2 * BITS) + tl.arange(0, 2)[None, :]
    for r in tl.static_range(BITS):
        w0, w1 = tl.split(tl.reshape(tl.load(in_ptr + r * 2), (TILE, 1, 2)))
        halves = (w0 & 0xFFFF | _FIXED, w0 >> 16 | _FIXED, w1 & 0xFFFF | _FIXED, w1 >> 16 | _FIXED)
        for p in tl.static_range(8 // BITS):
            y = ()
            for h in tl.static_range(4):
                for i in tl.static_range(2):
                    y += (decode_kernel.decoded(halves[h], i * 8 + p * BITS, scale, zero, BITS, KEEPS, dtype),)
            at = first + (p * BITS + r) * across * _SIDE
            store_run(y_ptr + offset, y, at, down * across * (_SIDE * _SIDE), live, TILE, 1, True)
