"""DIVISION's two components in traceable ATen (Wang et al., ICML 2023).

    L = mean of each cell, in bf16        low-frequency component
    H = x - spread(L), affine codes       high-frequency component, one (scale, zero) per plane
    x̂ = spread(L) + Ĥ

All arithmetic is fp32. `spread` repeats a cell's value over the cell, so that the two components fit at every size.
"""

import math

import torch

from fxcompress.codecs import maps
from fxcompress.codecs.affine import reference as affine
from fxcompress.codecs.groups import LARGEST, nearest_bf16, to_rows

_RESIDUAL_LARGEST = 2 * LARGEST
"""A residual is a difference of two values of up to `LARGEST`."""


def encode(
    planes: torch.Tensor, bits: int, group: int, cell: tuple[int, int], salt: int | torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Split and quantize.

    Args:
        planes: `[*lead, planes, height, width]`, any float dtype.
        bits: width of the residual's codes.
        group: elements of a plane, rounded up to whole packed words.
        cell: rows and columns of a cell.
        salt: the noise's name for stochastic rounding, None for nearest.

    Returns:
        means bf16 `[*lead, planes, rows, columns]`, codes uint8 `[*lead, planes, group·bits/8]`, word int32
        `[*lead, planes]`.
    """
    # The order of a sum decides its last bit, and the strides decide the order.
    values = planes.to(torch.float32).contiguous()
    *lead, height, width = values.shape
    means = nearest_bf16(maps.cell_means(values, cell))
    residual = values - maps.spread(means, cell, height, width)
    # A huge constant has a small residual; it must come back as non-finite all the same.
    residual = torch.where(values.abs() <= LARGEST, residual, math.nan)
    rows = residual.reshape(*lead, height * width)
    codes, word = affine.encode(rows, bits, group, salt, largest=_RESIDUAL_LARGEST)
    return means.to(torch.bfloat16), codes.squeeze(-2), word.squeeze(-1)


def decode(
    parts: tuple[torch.Tensor, ...], bits: int, cell: tuple[int, int], height: int, width: int, dtype: torch.dtype
) -> torch.Tensor:
    """(means, codes, word) → `[*lead, planes, height, width]` of `dtype`."""
    means, codes, word = parts
    rows = affine.decode(codes[..., None, :], word[..., None], bits, height * width, torch.float32)
    residual = rows.reshape(*rows.shape[:-1], height, width)
    values = residual + maps.spread(means.to(torch.float32), cell, height, width)
    return to_rows(values, height * width, dtype).reshape(values.shape)
