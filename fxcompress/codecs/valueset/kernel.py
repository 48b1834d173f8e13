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


@triton.jit(do_not_specialize=["n_blocks"])
def decode(bits_ptr, y_ptr, n_blocks, TILE: tl.constexpr):
    """Inverse of `encode`."""
    base = tl.program_id(0) * TILE
    g = tl.arange(0, TILE)[:, None]
    near = tl.minimum(g, n_blocks - 1 - base)
    words = bits_ptr.to(tl.pointer_type(tl.uint32)) + base.to(tl.int64) * 2 + near * 2 + tl.arange(0, 2)[None, :]
    low, high = tl.split(tl.reshape(tl.load(words), (TILE, 1, 2)))
    to = y_ptr.to(tl.pointer_type(tl.uint32)) + base.to(tl.int64) * 16 + g * 16 + tl.arange(0, 4)[None, :]
    for u in tl.static_range(4):
        a, b = (low >> 2 * u) & 0x01010101, (high >> 2 * u) & 0x01010101
        c, d = (low >> (2 * u + 1)) & 0x01010101, (high >> (2 * u + 1)) & 0x01010101
        tl.store(to + u * 4, merge4(a, b, c, d, TILE, 1), mask=g < n_blocks - base)
