"""Reading and writing groups in Triton as runs of eight neighbours per thread, and the noise. Needs only Triton.

A tile is `[TILE, LANES]`: TILE groups, each shared by LANES threads. Element e of a group lies in unit u = e // W with
W = 8·LANES, and there in lane e % W // 8, so that one load brings a thread 16 or 32 contiguous bytes.
"""

import triton
import triton.language as tl

RUN = 8
_ROUNDS = tl.constexpr(7)


def lanes(bits: int, group: int, most: int) -> int:
    """Threads that share a group, when each may hold `most` of its elements; 0 for a group that the kernels refuse."""
    if group & (group - 1) or group * bits < 64 or not 16 <= group <= 2048:
        return 0
    return min(max(group // most, 1), group * bits // 64)


@triton.jit
def rows(base, n_groups, cols, TILE: tl.constexpr, GROUP: tl.constexpr, VECTOR: tl.constexpr, RAGGED: tl.constexpr):
    """(live groups, offset of the row or group as int64, first column, end of the row), the last three `[TILE, 1]`."""
    # Groups past the end read the last one again: a mask would cost zeroed registers.
    g = tl.minimum(tl.arange(0, TILE), n_groups - 1 - base)[:, None]
    if RAGGED:
        row_groups = (cols + GROUP - 1) // GROUP
        row = (base + g) // row_groups
        end = (cols // 8) * 8 if VECTOR else cols
        return row.to(tl.int64) * end, ((base + g) - row * row_groups) * GROUP, end
    return base.to(tl.int64) * GROUP + g * GROUP, tl.zeros((TILE, 1), tl.int32), GROUP


@triton.jit
def _columns(LANES: tl.constexpr, STEP: tl.constexpr):
    """int32 `[1, 4·LANES]`: four neighbours per thread, threads STEP apart."""
    c = tl.arange(0, LANES * 4)
    return ((c // 4) * STEP + c % 4)[None, :]


@triton.jit
def split4(x, TILE: tl.constexpr, LANES: tl.constexpr):
    """`[TILE, 4·LANES]` → four `[TILE, LANES]`: neighbours that lie in one thread."""
    even, odd = tl.split(tl.reshape(x, (TILE, LANES * 2, 2)))
    x0, x2 = tl.split(tl.reshape(even, (TILE, LANES, 2)))
    x1, x3 = tl.split(tl.reshape(odd, (TILE, LANES, 2)))
    return x0, x1, x2, x3


@triton.jit
def merge4(x0, x1, x2, x3, TILE: tl.constexpr, LANES: tl.constexpr):
    """Inverse of `split4`."""
    return tl.reshape(tl.join(tl.join(x0, x2), tl.join(x1, x3)), (TILE, LANES * 4))


@triton.jit
def _halves(pair, dtype: tl.constexpr):
    """Two 16-bit floats in an int32 → fp32 (low, high)."""
    if dtype == tl.bfloat16:
        return (pair << 16).to(tl.float32, bitcast=True), (pair & -65536).to(tl.float32, bitcast=True)
    low = (pair & 0xFFFF).to(tl.int16).to(dtype, bitcast=True)
    return low.to(tl.float32), (pair >> 16).to(tl.int16).to(dtype, bitcast=True).to(tl.float32)


@triton.jit
def load_run(
    row_ptr, at, end, last, TILE: tl.constexpr, LANES: tl.constexpr, VECTOR: tl.constexpr, RAGGED: tl.constexpr
):
    """Eight fp32 `[TILE, LANES]`: run number `lane` of a unit.

    `row_ptr` `[TILE, 1]` points at the row (ragged) or the group; `at` `[TILE, 1]` is the unit's column there. Columns
    from `end` on read as `last`, the row's last element.
    """
    dtype: tl.constexpr = row_ptr.dtype.element_ty
    run = at + tl.arange(0, LANES)[None, :] * 8
    inside = run < end
    if not VECTOR:
        out = ()
        for i in tl.static_range(8):
            out += (tl.load(row_ptr + tl.minimum(run + i, end - 1)).to(tl.float32),)
        return out
    if dtype == tl.float32:
        first = row_ptr + (at + _columns(LANES, 8))
        if RAGGED:
            mask = at + _columns(LANES, 8) < end
            a, b = tl.load(first, mask=mask), tl.load(first + 4, mask=mask)
        else:
            a, b = tl.load(first), tl.load(first + 4)
        out = split4(a, TILE, LANES) + split4(b, TILE, LANES)
    else:
        pairs = row_ptr.to(tl.pointer_type(tl.int32)) + (at // 2 + _columns(LANES, 4))
        x = tl.load(pairs, mask=at // 2 + _columns(LANES, 4) < end // 2) if RAGGED else tl.load(pairs)
        p0, p1, p2, p3 = split4(x, TILE, LANES)
        out = _halves(p0, dtype) + _halves(p1, dtype) + _halves(p2, dtype) + _halves(p3, dtype)
    if not RAGGED:
        return out
    filled = ()
    for i in tl.static_range(8):
        filled += (tl.where(inside, out[i], last),)
    return filled


@triton.jit
def load_repeated(
    ptr,
    base,
    n_groups,
    at,
    end,
    PERIOD: tl.constexpr,
    GROUP: tl.constexpr,
    TILE: tl.constexpr,
    LANES: tl.constexpr,
    RAGGED: tl.constexpr,
):
    """What `load_run` returns, of one row in which PERIOD elements, a multiple of 8 and at most 2¹⁹, come anew."""
    column = tl.arange(0, LANES * 4)[None, :]
    group = base + tl.minimum(tl.arange(0, TILE), n_groups - 1 - base)[:, None]
    within = at % GROUP + column // 4 * 8
    if PERIOD % GROUP == 0:
        near = group % (PERIOD // GROUP) * GROUP + within
    else:
        near = (group % PERIOD * GROUP + within) % PERIOD
    first = ptr + (near + column % 4)
    a, b = tl.load(first).to(tl.float32), tl.load(first + 4).to(tl.float32)
    out = split4(a, TILE, LANES) + split4(b, TILE, LANES)
    if not RAGGED:
        return out
    last = tl.load(ptr + (PERIOD - 1)).to(tl.float32)
    inside = at + tl.arange(0, LANES)[None, :] * 8 < end
    filled = ()
    for i in tl.static_range(8):
        filled += (tl.where(inside, out[i], last),)
    return filled


@triton.jit
def clamp(x, dtype: tl.constexpr):
    """A scale or zero rounded away from the data can lie beyond fp16's largest value."""
    return tl.clamp(x, -65504.0, 65504.0, propagate_nan=tl.PropagateNan.ALL).to(dtype) if dtype == tl.float16 else x


@triton.jit
def merge_run(y, dtype: tl.constexpr, TILE: tl.constexpr):
    """Four fp32 `[TILE, 1]` → fp32 `[TILE, 4]`; eight → `[TILE, 8]` of a 16-bit `dtype`."""
    a = merge4(clamp(y[0], dtype), clamp(y[1], dtype), clamp(y[2], dtype), clamp(y[3], dtype), TILE, 1)
    if dtype != tl.float32:
        b = merge4(clamp(y[4], dtype), clamp(y[5], dtype), clamp(y[6], dtype), clamp(y[7], dtype), TILE, 1)
        a = tl.reshape(tl.permute(tl.join(a, b), (0, 2, 1)), (TILE, 8)).to(dtype)
    return a


@triton.jit
def store_run(row_ptr, y, at, end, live, TILE: tl.constexpr, LANES: tl.constexpr, VECTOR: tl.constexpr):
    """Inverse of `load_run`: eight fp32 `[TILE, LANES]`, of which those before `end` are stored."""
    dtype: tl.constexpr = row_ptr.dtype.element_ty
    clamped = ()
    for i in tl.static_range(8):
        clamped += (clamp(y[i], dtype),)
    store_values(row_ptr, clamped, at, end, live, TILE, LANES, VECTOR, True)


@triton.jit
def store_values(
    row_ptr, y, at, end, live, TILE: tl.constexpr, LANES: tl.constexpr, VECTOR: tl.constexpr, MASKED: tl.constexpr
):
    """Eight `[TILE, LANES]` as they are; MASKED: only rows that are `live`, and columns before `end`."""
    dtype: tl.constexpr = row_ptr.dtype.element_ty
    if not VECTOR:
        run = at + tl.arange(0, LANES)[None, :] * 8
        for i in tl.static_range(8):
            inside = live & (run + i < end) if MASKED else None
            tl.store(row_ptr + (run + i), y[i].to(dtype), mask=inside)
        return
    a = merge4(y[0], y[1], y[2], y[3], TILE, LANES)
    b = merge4(y[4], y[5], y[6], y[7], TILE, LANES)
    if dtype == tl.float32:
        column = at + _columns(LANES, 8)
        tl.store(row_ptr + column, a, mask=live & (column < end) if MASKED else None)
        tl.store(row_ptr + column + 4, b, mask=live & (column + 4 < end) if MASKED else None)
    else:
        a, b = tl.reshape(a, (TILE, LANES, 4)), tl.reshape(b, (TILE, LANES, 4))
        both = tl.reshape(tl.permute(tl.join(a, b), (0, 1, 3, 2)), (TILE, LANES * 8))
        column = at + tl.arange(0, LANES * 8)[None, :]
        tl.store(row_ptr + column, both.to(dtype), mask=live & (column < end) if MASKED else None)


@triton.jit
def philox(key0, key1, c0, c2):
    """`noise.philox` of (c0, 0, c2, 0), uint32; `key0` is a scalar or of one value."""
    c1 = tl.zeros_like(c0)
    c3 = tl.zeros_like(c0)
    for _ in tl.static_range(_ROUNDS):
        product0 = c0.to(tl.uint64) * 0xD2511F53
        product1 = c2.to(tl.uint64) * 0xCD9E8D57
        c0 = (product1 >> 32).to(tl.uint32) ^ c1 ^ key0
        c1 = product1.to(tl.uint32)
        c2 = (product0 >> 32).to(tl.uint32) ^ c3 ^ key1
        c3 = product0.to(tl.uint32)
        key0 += 0x9E3779B9
        key1 += 0xBB67AE85
    return c0, c1, c2, c3
