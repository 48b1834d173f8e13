"""Affine codes with one (scale, zero) per cell of a map, in traceable ATen: `codecs.affine` with cells for groups.

The zero of a cell does what DIVISION's block mean does, at no cost of its own.
"""

import torch

from fxcompress.codecs import maps
from fxcompress.codecs.affine import reference as affine


def encode(
    planes: torch.Tensor,
    bits: int,
    group: int,
    cell: tuple[int, int],
    salt: int | torch.Tensor | None,
    *,
    zero_preserving: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize cell by cell.

    Args:
        planes: `[*lead, planes, height, width]`, any float dtype.
        bits: 1, 2, 4 or 8.
        group: elements of a cell, rounded up to whole packed words.
        cell: rows and columns of a cell.
        salt: the noise's name for stochastic rounding, None for nearest.
        zero_preserving: as for `affine`.

    Returns:
        codes uint8 `[*lead, planes·cells, group·bits/8]`, word int32 `[*lead, planes·cells]`.
    """
    cells = maps.to_cells(planes, cell).flatten(-3, -2)
    quantize = affine.encode_zero_preserving if zero_preserving else affine.encode
    codes, word = quantize(cells, bits, group, salt)
    return codes.squeeze(-2), word.squeeze(-1)


def decode(
    parts: tuple[torch.Tensor, ...],
    bits: int,
    cell: tuple[int, int],
    height: int,
    width: int,
    dtype: torch.dtype,
    *,
    zero_preserving: bool,
) -> torch.Tensor:
    """(codes, word) → `[*lead, planes, height, width]` of `dtype`."""
    codes, word = parts
    dequantize = affine.decode_zero_preserving if zero_preserving else affine.decode
    cells = dequantize(codes[..., None, :], word[..., None], bits, cell[0] * cell[1], dtype)
    count = -(-height // cell[0]) * -(-width // cell[1])
    *lead, total, size = cells.shape
    return maps.from_cells(cells.reshape(*lead, total // count, count, size), cell, height, width)
