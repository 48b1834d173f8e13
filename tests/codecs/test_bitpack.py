"""Packing against a byte-by-byte oracle; the dithered path against adding the bytes one by one."""

import pytest
import torch

from fxcompress.codecs import bitpack, noise

WIDTHS = pytest.mark.parametrize("bits", bitpack.WIDTHS)
GROUPS = pytest.mark.parametrize("group", [16, 48, 64, 128])


def half_split(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Byte j of a block holds codes j, j+H, j+2H, … from its low bits up."""
    rows = codes.reshape(-1, codes.shape[-1]).tolist()
    half = codes.shape[-1] * bits // 8
    packed = [[sum(row[j + i * half] << (i * bits) for i in range(8 // bits)) for j in range(half)] for row in rows]
    return torch.tensor(packed, dtype=torch.uint8).reshape(*codes.shape[:-1], half)


def some_codes(bits: int, group: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(bits)
    return torch.randint(0, 2**bits, (2, 3, group), dtype=torch.int32, generator=generator)


@WIDTHS
@GROUPS
def test_pack_and_unpack(bits: int, group: int) -> None:
    codes = some_codes(bits, group)
    packed = bitpack.pack(codes, bits)
    assert torch.equal(packed, half_split(codes, bits))
    assert torch.equal(bitpack.unpack(packed, bits).flatten(-2), codes)


@WIDTHS
@GROUPS
def test_dithered_packing_adds_each_element_its_byte(bits: int, group: int) -> None:
    generator = torch.Generator().manual_seed(bits)
    fixed = torch.randint(0, (2**bits - 1) * 256 + 1, (2, 3, group), dtype=torch.int32, generator=generator)
    words = noise.words(3, torch.arange(6, dtype=torch.int32).reshape(2, 3), group)
    added = torch.empty_like(fixed)
    for e in range(group):
        call, byte = e % (group // 2) // 8, 8 * (e // (group // 2)) + e % 8
        added[..., e] = (words[byte // 4][..., call] >> (8 * (byte % 4))) & 0xFF
    codes = (fixed + added) >> 8
    assert torch.equal(bitpack.pack_dithered(fixed, words, bits), half_split(codes, bits))
    for compact in (False, True):
        assert torch.equal(bitpack.spread(words, compact=compact), added)


@WIDTHS
def test_the_largest_code_with_the_largest_byte_does_not_carry(bits: int) -> None:
    fixed = torch.full((1, 64), (2**bits - 1) * 256, dtype=torch.int32)
    words = tuple(torch.full((1, 4), -1, dtype=torch.int32) for _ in range(4))
    assert torch.equal(bitpack.pack_dithered(fixed, words, bits), torch.full((1, 8 * bits), 255, dtype=torch.uint8))
