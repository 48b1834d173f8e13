"""The affine encode in Triton: one read, one write, bit for bit what `reference` computes. Needs only Triton.

A thread reads runs of eight neighbours (`runs`) and owns whole Philox calls, so that only the group's minimum and
maximum cross threads: units u and u + UNITS/2 share their calls, and the units of one byte are UNITS·bits/8 apart (the
half-split of `bitpack`). Four codes travel in one 32-bit word, in memory order, from the noise to the store.

Every product that feeds an addition is exact or explicitly fused, so that no contraction can change a bit.
"""

import triton
import triton.language as tl

from fxcompress.codecs.runs import load_run, merge4, philox, rows

_LARGEST = tl.constexpr(2.0**125)
_SMALLEST_SCALE = tl.constexpr(2.0**-126)
_NAN_WORD = tl.constexpr(0x7FC00000)
_NAN_WORD_OF_SIGNS = tl.constexpr(0x7FC07FC0)
_FIXED = tl.constexpr(0x4B000000)
ZEROS = tl.constexpr(1)
"""As `KEEPS`, what codes keep: 0 for nothing, or `SIGNS`."""
SIGNS = tl.constexpr(2)


@triton.jit
def _nan_max(a, b):
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _min(a, b):
    return tl.minimum(a, b)


@triton.jit
def _inverse(scale):
    """fp32 1/scale rounded to nearest for a normal bf16 scale, 0 for scale 0: three Newton steps on the mantissa.

    The first fifteen bits of the second step multiply exactly; 2⁻³¹ carries the result over the one midpoint that the
    steps, which come from below, fall short of. All 128 mantissas are tested.
    """
    bits = scale.to(tl.int32, bitcast=True)
    significand = (bits & 0x007F0000) | 0x3F800000
    m = significand.to(tl.float32, bitcast=True)
    r = (0x7EF10000 - significand).to(tl.float32, bitcast=True)
    r = tl.fma(r, tl.fma(-m, r, 1.0), r)
    r = tl.fma(r, tl.fma(-m, r, 1.0), r)
    r = (r.to(tl.int32, bitcast=True) & -256).to(tl.float32, bitcast=True)
    r = tl.fma(r, tl.fma(-m, r, 1.0) + 2.0**-31, r)
    wanted = r.to(tl.int32, bitcast=True) + significand - bits
    return tl.where(scale > 0, wanted, 0).to(tl.float32, bitcast=True)


@triton.jit
def _key(x, KEEPS: tl.constexpr):
    """What is smallest for the value that the zero comes from; bits - 1 puts zeros and negatives above all others."""
    return x.to(tl.uint32, bitcast=True) - 1 if KEEPS == ZEROS else x


@triton.jit
def _range_of_run(x, KEEPS: tl.constexpr):
    """Lowest key and largest value of a run of eight, as a tree: compilers leave minima in the order that they find."""
    low, high = (), ()
    for i in tl.static_range(4):
        a, b = x[2 * i], x[2 * i + 1]
        low += (tl.minimum(_key(a, KEEPS), _key(b, KEEPS)),)
        high += (_nan_max(a, b),)
    low_half, high_half = tl.minimum(low[0], low[1]), _nan_max(high[0], high[1])
    return (
        tl.minimum(low_half, tl.minimum(low[2], low[3])),
        _nan_max(high_half, _nan_max(high[2], high[3])),
    )


@triton.jit
def _zero(bits):
    """The bits of fp32 lowest values → the bf16 not above each, as fp32."""
    zero = ((bits + ((bits >> 31) & 0xFFFF)) & -65536).to(tl.float32, bitcast=True)
    # Not a no-op: it turns -0 into +0.
    return tl.where(zero == 0.0, 0.0, zero)


@triton.jit
def _scale(zero, high, RECIPROCAL: tl.constexpr):
    """fp32 zero and largest value → the step between codes, a bf16 as fp32."""
    span = high - zero
    scale = (((span * RECIPROCAL).to(tl.int32, bitcast=True) + 0xFFFF) & -65536).to(tl.float32, bitcast=True)
    return tl.where(span > 0, tl.maximum(scale, _SMALLEST_SCALE), _SMALLEST_SCALE)


@triton.jit
def _metadata_of_values(low, high, KEEPS: tl.constexpr, RECIPROCAL: tl.constexpr):
    """`[TILE, 1]` lowest key and fp32 largest value → (word, zero, 1/scale), as `reference.make_word`."""
    if KEEPS == ZEROS:
        floor = ((low + 1) & 0xFFFF0000).to(tl.float32, bitcast=True)
        zero = tl.where(low >= 0x7F800000, 0.0, tl.maximum(floor, _SMALLEST_SCALE))
    else:
        zero = _zero(low.to(tl.int32, bitcast=True))
    scale = _scale(zero, high, RECIPROCAL)
    finite = (zero >= -_LARGEST) & (high <= _LARGEST)
    zero = tl.where(finite, zero, 0.0)
    word = scale.to(tl.int32, bitcast=True) | ((zero.to(tl.int32, bitcast=True) >> 16) & 0xFFFF)
    return tl.where(finite, word, _NAN_WORD), zero, _inverse(tl.where(finite, scale, 0.0))


@triton.jit
def _metadata_of_signs(low, high, RECIPROCAL: tl.constexpr):
    """`[TILE, 1]` fp32 extremes → (word, 1/scale of what is not positive, 1/scale of what is), as `signs.encode`."""
    below, above = _scale(tl.minimum(low, 0.0), 0.0, RECIPROCAL), _scale(0.0, tl.maximum(high, 0.0), RECIPROCAL)
    finite = (low >= -_LARGEST) & (high <= _LARGEST)
    word = above.to(tl.int32, bitcast=True) | ((below.to(tl.int32, bitcast=True) >> 16) & 0xFFFF)
    nan = float("nan")
    return (
        tl.where(finite, word, _NAN_WORD_OF_SIGNS),
        tl.where(finite, _inverse(below), nan),
        tl.where(finite, _inverse(above), nan),
    )


@triton.jit
def _metadata(low, high, KEEPS: tl.constexpr, RECIPROCAL: tl.constexpr):
    """`[TILE, 1]` lowest key and fp32 largest value → (word, what `_code` subtracts, what it multiplies with), but for
    `SIGNS` what it multiplies the two kinds with."""
    if KEEPS == SIGNS:
        return _metadata_of_signs(low, high, RECIPROCAL)
    return _metadata_of_values(low, high, KEEPS, RECIPROCAL)


@triton.jit
def _code(x, zero, inverse, BITS: tl.constexpr, STOCHASTIC: tl.constexpr, KEEPS: tl.constexpr):
    """uint32: `_FIXED` plus the code in 1/256, or the bits of 2³¹ plus the rounded code."""
    one: tl.constexpr = 2.0**23 if STOCHASTIC else 2.0**31
    if KEEPS == SIGNS:
        middle: tl.constexpr = one + 2.0 ** (BITS + 7)
        steps = x * tl.where(x <= 0, zero, inverse)
        return tl.fma(steps, 256.0, tl.where(x <= 0, middle - 256.0, middle)).to(tl.uint32, bitcast=True)
    steps = (x - zero) * inverse
    if KEEPS == ZEROS:
        # The maximum also sends NaN to the lowest positive code.
        steps = tl.where(x <= 0, 0.0, tl.maximum(steps, 0.0) + 1.0)
    # 2³¹ + 256·steps rounds where 2²³ + steps does; a plain addition might be contracted with the product before.
    return tl.fma(steps, 256.0, one).to(tl.uint32, bitcast=True)


@triton.jit
def _four(x0, x1, x2, x3, noise, zero, inverse, BITS: tl.constexpr, STOCHASTIC: tl.constexpr, KEEPS: tl.constexpr):
    """Codes of four neighbours as the bytes of a uint32, lowest first, plus `_excess`."""
    a = _code(x0, zero, inverse, BITS, STOCHASTIC, KEEPS)
    b = _code(x1, zero, inverse, BITS, STOCHASTIC, KEEPS)
    c = _code(x2, zero, inverse, BITS, STOCHASTIC, KEEPS)
    d = _code(x3, zero, inverse, BITS, STOCHASTIC, KEEPS)
    if not STOCHASTIC:
        return a + b * 0x100 + c * 0x10000 + d * 0x1000000
    # Two codes of 16 bits per word, the high one with `_FIXED` of the low one on top.
    even = a + c * 0x10000 + (noise & 0x00FF00FF)
    odd = b + d * 0x10000 + ((noise >> 8) & 0x00FF00FF)
    if BITS == 8:
        even -= _FIXED
        odd -= _FIXED
    return ((even >> 8) & 0x00FF00FF) | (odd & 0xFF00FF00)


@triton.jit
def _excess(first, BITS: tl.constexpr, STOCHASTIC: tl.constexpr):
    """Minus what `_four` leaves in the words of half a byte, as the start of their sum."""
    merged: tl.constexpr = 1 if BITS == 8 else 15 // (2**BITS - 1)
    excess: tl.constexpr = (0x4B4B0000 if BITS < 8 else 0) if STOCHASTIC else 0x4F000000
    return tl.full(first.shape, -(excess * merged) & 0xFFFFFFFF, tl.uint32)


@triton.jit
def _unit(x, noise0, noise1, zero, inverse, BITS: tl.constexpr, STOCHASTIC: tl.constexpr, KEEPS: tl.constexpr):
    """Codes of a run of eight, as two words."""
    first = _four(x[0], x[1], x[2], x[3], noise0, zero, inverse, BITS, STOCHASTIC, KEEPS)
    return first, _four(x[4], x[5], x[6], x[7], noise1, zero, inverse, BITS, STOCHASTIC, KEEPS)


@triton.jit
def store_groups(
    x,
    codes_ptr,
    word_ptr,
    base,
    n_groups,
    salt,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    STOCHASTIC: tl.constexpr,
    KEEPS: tl.constexpr,
    RECIPROCAL: tl.constexpr,
    LANES: tl.constexpr,
    TILE: tl.constexpr,
):
    """Quantize and store the groups from `base` on; `x` are their units, each a run of eight fp32 `[TILE, LANES]`."""
    UNITS: tl.constexpr = GROUP // (8 * LANES)
    RUNS: tl.constexpr = UNITS * BITS // 8
    HALF: tl.constexpr = UNITS // 2
    low, high = _range_of_run(x[0], KEEPS)
    for u in tl.static_range(1, UNITS):
        run_low, run_high = _range_of_run(x[u], KEEPS)
        low, high = tl.minimum(low, run_low), _nan_max(high, run_high)
    low = tl.reduce(low, 1, _min, keep_dims=True)
    high = tl.reduce(high, 1, _nan_max, keep_dims=True)
    word, zero, inverse = _metadata(low, high, KEEPS, RECIPROCAL)

    # As in `rows`, what is past the end is the last group again.
    g = tl.minimum(tl.arange(0, TILE), n_groups - 1 - base)[:, None]
    # Triton would bring the words to other threads, through shared memory, if it saw consecutive addresses along groups
    # (so the mask) and none along lanes (so the sum, of which one is stored).
    to = word_ptr + base + (g & 0x7FFFFFFF) + tl.arange(0, LANES)[None, :]
    tl.store(to, tl.broadcast_to(word, (TILE, LANES)), mask=tl.arange(0, LANES)[None, :] == 0)
    key0 = tl.full((TILE, LANES), salt, tl.int32).to(tl.uint32, bitcast=True)
    key1 = tl.broadcast_to(word.to(tl.uint32, bitcast=True), (TILE, LANES))
    index = tl.broadcast_to((base + g).to(tl.uint32), (TILE, LANES))
    lane = tl.broadcast_to(tl.arange(0, LANES)[None, :], (TILE, LANES)).to(tl.uint32)
    out_ptr = codes_ptr.to(tl.pointer_type(tl.uint32)) + base.to(tl.int64) * (GROUP * BITS // 32)
    out_ptr += g * (GROUP * BITS // 32) + tl.arange(0, 2 * LANES)[None, :]
    for r in tl.static_range(RUNS if BITS < 8 else HALF):
        start = _excess(index, BITS, STOCHASTIC)
        first0, first1, second0, second1 = start, start, start, start
        for p in tl.static_range(HALF // RUNS if BITS < 8 else 1):
            if STOCHASTIC:
                n0, n1, n2, n3 = philox(key0, key1, index, lane + (p * RUNS + r) * LANES)
            else:
                n0, n1, n2, n3 = index, index, index, index
            a, b = _unit(x[p * RUNS + r], n0, n1, zero, inverse, BITS, STOCHASTIC, KEEPS)
            first0 += a * (1 << p * BITS)
            first1 += b * (1 << p * BITS)
            a, b = _unit(x[HALF + p * RUNS + r], n2, n3, zero, inverse, BITS, STOCHASTIC, KEEPS)
            second0 += a * (1 << p * BITS)
            second1 += b * (1 << p * BITS)
        if BITS < 8:
            first0 += second0 * 16
            first1 += second1 * 16
        else:
            out = tl.reshape(tl.join(second0, second1), (TILE, 2 * LANES))
            tl.store(out_ptr + (HALF + r) * 2 * LANES, out)
        if LANES == 1 and BITS < 8 and RUNS > 1:
            # Two runs are neighbours in the thread: 16 bytes at once, next to the next group's.
            if r % 2 == 0:
                even0, even1 = first0, first1
            else:
                wide_ptr = codes_ptr.to(tl.pointer_type(tl.uint32)) + base.to(tl.int64) * (GROUP * BITS // 32)
                wide_ptr += g * (GROUP * BITS // 32) + tl.arange(0, 4)[None, :]
                tl.store(wide_ptr + (r - 1) * 2, merge4(even0, even1, first0, first1, TILE, 1))
        else:
            out = tl.reshape(tl.join(first0, first1), (TILE, 2 * LANES))
            tl.store(out_ptr + r * 2 * LANES, out)


@triton.jit(do_not_specialize=["n_groups", "salt"])
def encode(
    x_ptr,
    codes_ptr,
    word_ptr,
    n_groups,
    cols,
    salt,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    STOCHASTIC: tl.constexpr,
    KEEPS: tl.constexpr,
    RECIPROCAL: tl.constexpr,
    LANES: tl.constexpr,
    TILE: tl.constexpr,
    VECTOR: tl.constexpr,
    RAGGED: tl.constexpr,
):
    """Quantize rows of `cols` elements, contiguous, into `n_groups` < 2³¹ groups in all.

    codes uint8 `[n_groups, GROUP·BITS/8]`, aligned to 16 bytes; word int32 `[n_groups]`. RECIPROCAL is
    `groups.reciprocal(levels)`, VECTOR that rows are multiples of 8 elements aligned to 16 bytes, RAGGED that they are
    not multiples of GROUP.
    """
    UNITS: tl.constexpr = GROUP // (8 * LANES)
    base = tl.program_id(0) * TILE
    offset, column, end = rows(base, n_groups, cols, TILE, GROUP, VECTOR, RAGGED)
    last = tl.load(x_ptr + offset + (end - 1)).to(tl.float32) if RAGGED else 0.0
    x = ()
    for u in tl.static_range(UNITS):
        x += (load_run(x_ptr + offset, column + u * 8 * LANES, end, last, TILE, LANES, VECTOR, RAGGED),)
    store_groups(
        x,
        codes_ptr,
        word_ptr,
        base,
        n_groups,
        salt,
        BITS,
        GROUP,
        STOCHASTIC,
        KEEPS,
        RECIPROCAL,
        LANES,
        TILE,
    )
