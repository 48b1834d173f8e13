"""The affine decode in Triton: one read, one write, bit for bit what `reference` computes. Needs only Triton.

Every product that feeds an addition is exact or explicitly fused, so that no contraction can change a bit.
"""

import triton
import triton.language as tl

from fxcompress.codecs.affine.kernel import SIGNS, ZEROS
from fxcompress.codecs.runs import clamp, merge_run

_FIXED = tl.constexpr(0x4B000000)


@triton.jit
def decoded(codes, shift: tl.constexpr, scale, zero, BITS: tl.constexpr, KEEPS: tl.constexpr, dtype: tl.constexpr):
    """fp32 value of the code that stands in `codes`, `_FIXED` plus 16 bits, from bit `shift` on; it is meant for
    `dtype`. With `SIGNS`, `zero` is the scale of what is not positive."""
    # The code is masked in place and brought down by an exact product, which costs no more than subtracting 2²³.
    placed = codes & (0xFF000000 | ((2**BITS - 1) << shift))
    first: tl.constexpr = 2 ** (BITS - 1) if KEEPS == SIGNS else KEEPS
    steps = tl.fma(placed.to(tl.float32, bitcast=True), 2.0**-shift, -(2.0 ** (23 - shift)) - first)
    if KEEPS == SIGNS:
        least: tl.constexpr = 2.0**-24 if dtype == tl.float16 else 2.0**-126
        return tl.fma(steps, tl.where(steps < 0, zero, scale), tl.where(steps < 0, zero, least))
    value = tl.fma(steps, scale, zero)
    return tl.where(steps < 0, 0.0, value) if KEEPS == ZEROS else value


@triton.jit
def _four(codes, scale, zero, BITS: tl.constexpr, KEEPS: tl.constexpr, dtype: tl.constexpr):
    """fp32 values of the codes in the low bits of a word's bytes."""
    low, high = codes & 0xFFFF | _FIXED, codes >> 16 | _FIXED
    return (
        decoded(low, 0, scale, zero, BITS, KEEPS, dtype),
        decoded(low, 8, scale, zero, BITS, KEEPS, dtype),
        decoded(high, 0, scale, zero, BITS, KEEPS, dtype),
        decoded(high, 8, scale, zero, BITS, KEEPS, dtype),
    )


@triton.jit(do_not_specialize=["n_groups"])
def decode(
    codes_ptr,
    word_ptr,
    y_ptr,
    n_groups,
    cols,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    KEEPS: tl.constexpr,
    TILE: tl.constexpr,
    THREADS: tl.constexpr,
    VECTOR: tl.constexpr,
    RAGGED: tl.constexpr,
):
    """Inverse of `encode`, into contiguous rows of `cols` elements; a program decodes TILE groups.

    A thread fills 16 bytes, next to its neighbour's: a GPU writes parts of 32-byte sectors at half speed or less. Bytes
    are loaded by the threads of all planes, each for its own bits.
    """
    dtype: tl.constexpr = y_ptr.dtype.element_ty
    # 16 bytes per thread, or one element where rows are not aligned.
    RUN: tl.constexpr = (4 if dtype == tl.float32 else 8) if VECTOR else 1
    STEPS: tl.constexpr = TILE * GROUP // (RUN * THREADS)
    SHARE: tl.constexpr = GROUP // RUN
    HALF: tl.constexpr = GROUP * BITS // 8
    base = tl.program_id(0) * TILE
    codes_ptr += base.to(tl.int64) * HALF
    if VECTOR:
        codes_ptr = codes_ptr.to(tl.pointer_type(tl.uint32))
    thread = tl.arange(0, THREADS)[:, None]
    # All loads before the first store, which might change what they read.
    word, codes = (), ()
    for r in tl.static_range(STEPS):
        group = r * THREADS // SHARE + thread // SHARE
        live = group < n_groups - base
        word += (tl.load(word_ptr + base + group, mask=live),)
        part = (r * THREADS % SHARE + thread % SHARE) % (HALF // RUN)
        if RUN == 1:
            codes += (tl.load(codes_ptr + group * HALF + part, mask=live).to(tl.uint32),)
        elif RUN == 4:
            codes += ((tl.load(codes_ptr + group * (HALF // 4) + part, mask=live),),)
        else:
            pair = tl.load(codes_ptr + group * (HALF // 4) + part * 2 + tl.arange(0, 2)[None, :], mask=live)
            codes += (tl.split(tl.reshape(pair, (THREADS, 1, 2))),)
    for r in tl.static_range(STEPS):
        group = r * THREADS // SHARE + thread // SHARE
        inside = r * THREADS % SHARE + thread % SHARE
        live = group < n_groups - base
        scale = (word[r] & -65536).to(tl.float32, bitcast=True)
        zero = (word[r] << 16).to(tl.float32, bitcast=True)
        shift = inside // (HALF // RUN) * BITS
        if RAGGED:
            row_groups = (cols + GROUP - 1) // GROUP
            row = (base + group) // row_groups
            column = (base + group - row * row_groups) * GROUP + inside * RUN
            # The division tells the compiler how rows are aligned.
            out_ptr = y_ptr + row.to(tl.int64) * (cols // RUN * RUN) + column
            live = live & (column < cols)
        else:
            out_ptr = y_ptr + base.to(tl.int64) * GROUP + (r * THREADS + thread) * RUN
        if RUN == 1:
            y = decoded(codes[r] >> shift | _FIXED, 0, scale, zero, BITS, KEEPS, dtype)
            tl.store(out_ptr, clamp(y, dtype).to(dtype), mask=live)
        else:
            y = ()
            for i in tl.static_range(RUN // 4):
                y += _four(codes[r][i] >> shift, scale, zero, BITS, KEEPS, dtype)
            tl.store(out_ptr + tl.arange(0, RUN)[None, :], merge_run(y, dtype, THREADS), mask=live)
