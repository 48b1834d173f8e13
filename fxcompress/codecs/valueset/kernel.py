"""Boolean masks as bits in Triton: a thread holds whole blocks of 64. Needs only Triton.

Byte j of a block's eight holds elements j, j + 8, … from its low bit up (the half-split of `bitpack`), so that words of
four booleans are shifted and added as they are.
"""

import triton
import triton.language as tl

from fxcompress.codecs.runs import merge4, split4


@triton.jit(do_not_specialize=["n_blocks"])
def encode(x_ptr, bits_ptr, n_blocks, TILE: tl.constexpr):
    """bool `[n_blocks, 64]` → uint8 `[n_blocks, 8]`, both aligned to 16 bytes; n_blocks < 2³¹."""
    base = tl.program_id(0) * TILE
    g = tl.arange(0, TILE)[:, None]
    near = tl.minimum(g, n_blocks - 1 - base)
    words = x_ptr.to(tl.pointer_type(tl.uint32)) + base.to(tl.int64) * 16 + near * 16 + tl.arange(0, 4)[None, :]
    low = tl.zeros((TILE, 1), tl.uint32)
    high = tl.zeros((TILE, 1), tl.uint32)
    for u in tl.static_range(4):
        a, b, c, d = split4(tl.load(words + u * 4), TILE, 1)
        low += a * (1 << 2 * u) + c * (2 << 2 * u)
        high += b * (1 << 2 * u) + d * (2 << 2 * u)
    out = tl.reshape(tl.join(low, high), (TILE, 2))
    to = bits_ptr.to(tl.pointer_type(tl.uint32)) + base.to(tl.int64) * 2 + g * 2 + tl.arange(0, 2)[None, :]
    tl.store(to, out, mask=g < n_blocks - base)


@triton.jit
def store_blocks(x, bits_ptr, base, n_groups, GROUP: tl.constexpr, LANES: tl.constexpr, TILE: tl.constexpr):
    """Pack what lies as groups do in `runs`: `x` are their units, each a run of eight booleans `[TILE, LANES]`.

    A lane has 32 elements of a group, and stores one of its words; at most 8 lanes.
    """
    EACH: tl.constexpr = 8 // LANES
    lane = tl.arange(0, LANES)[None, :]
    g = tl.minimum(tl.arange(0, TILE), n_groups - 1 - base)[:, None]
    chosen = tl.zeros((TILE, LANES), tl.uint32)
    for b in tl.static_range(GROUP // 64):
        low = tl.zeros((TILE, LANES), tl.uint32)
        high = tl.zeros((TILE, LANES), tl.uint32)
        for u in tl.static_range(EACH):
            # Run number u·LANES + lane of the block is that bit of its eight bytes.
            run, bit = x[b * EACH + u], u * LANES + lane
            low += _word(run[0], run[1], run[2], run[3]) << bit
            high += _word(run[4], run[5], run[6], run[7]) << bit
        chosen = tl.where(lane == 2 * b, tl.sum(low, 1, keep_dims=True), chosen)
        chosen = tl.where(lane == 2 * b + 1, tl.sum(high, 1, keep_dims=True), chosen)
    to = bits_ptr.to(tl.pointer_type(tl.uint32)) + base.to(tl.int64) * LANES
    tl.store(to + g * LANES + lane, chosen)


@triton.jit
def _word(a, b, c, d):
    """Four booleans as the low bits of a word's bytes, lowest first."""
    return a.to(tl.uint32) + b.to(tl.uint32) * 0x100 + c.to(tl.uint32) * 0x10000 + d.to(tl.uint32) * 0x1000000


@triton.jit(do_not_specialize=["n_blocks"])
def decode(bits_ptr, y_ptr, n_blocks, TILE: tl.constexpr, THREADS: tl.constexpr):
    """Inverse of `encode`. A thread fills 16 bytes, a quarter of a block, next to its neighbour's."""
    base = tl.program_id(0) * TILE
    thread = tl.arange(0, THREADS)[:, None]
    g, shift = thread // 4, thread % 4 * 2
    words_ptr = bits_ptr.to(tl.pointer_type(tl.uint32)) + base.to(tl.int64) * 2
    out_ptr = y_ptr.to(tl.pointer_type(tl.uint32)) + base.to(tl.int64) * 16 + tl.arange(0, 4)[None, :]
    # All loads before the first store, which might change what they read.
    halves = ()
    for r in tl.static_range(TILE * 4 // THREADS):
        block = r * (THREADS // 4) + g
        pair = tl.load(words_ptr + block * 2 + tl.arange(0, 2)[None, :], mask=block < n_blocks - base)
        halves += (tl.split(tl.reshape(pair, (THREADS, 1, 2))),)
    for r in tl.static_range(TILE * 4 // THREADS):
        low, high = halves[r][0] >> shift, halves[r][1] >> shift
        a, b = low & 0x01010101, high & 0x01010101
        c, d = (low >> 1) & 0x01010101, (high >> 1) & 0x01010101
        live = r * (THREADS // 4) + g < n_blocks - base
        tl.store(out_ptr + (r * THREADS + thread) * 4, merge4(a, b, c, d, THREADS, 1), mask=live)
