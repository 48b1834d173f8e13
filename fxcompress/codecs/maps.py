"""Rows as maps: planes of height × width elements, and the cells that cover a plane.

A row holds `[outer, height, width, inner]` in memory order, of which `inner` is 1 for contiguous images, the channels
for channels_last images and for token sequences (whose width is 1). One plane is one (outer, inner). Cells are
aligned: index i lies in cell i // size, and the last cell of an axis may be ragged.
"""

import torch

from fxcompress.errors import OptionError


def check_map(codec: str, **sizes: int) -> None:
    """Raise `OptionError` unless all named sizes are positive integers."""
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int) or size <= 0:
            raise OptionError(f"{codec}: {name} is {size!r}; choose a positive integer")


def count_planes(codec: str, cols: int, height: int, width: int, inner: int) -> int:
    """Planes of height × width in a row of `cols` elements; `OptionError` if they do not fill it."""
    unit = height * width * inner
    if cols % unit:
        raise OptionError(f"{codec}: a row of {cols} elements does not hold maps of {height} x {width} x {inner}")
    return cols // (height * width)


def padded(count: int, step: int) -> int:
    """The smallest multiple of `step` that is not below `count`."""
    return -(-count // step) * step


def to_planes(x: torch.Tensor, height: int, width: int, inner: int) -> torch.Tensor:
    """`[*lead, cols]` → `[*lead, planes, height, width]`."""
    *lead, cols = x.shape
    maps = x.reshape(*lead, cols // (height * width * inner), height, width, inner)
    return maps.movedim(-1, -3).reshape(*lead, cols // (height * width), height, width)


def from_planes(planes: torch.Tensor, inner: int) -> torch.Tensor:
    """Inverse of `to_planes`: `[*lead, planes, height, width]` → `[*lead, cols]`."""
    *lead, count, height, width = planes.shape
    maps = planes.reshape(*lead, count // inner, inner, height, width).movedim(-3, -1)
    return maps.reshape(*lead, count * height * width)


def to_cells(planes: torch.Tensor, cell: tuple[int, int]) -> torch.Tensor:
    """`[*lead, planes, height, width]` → `[*lead, planes, cells, elements of a cell]`, edges repeated."""
    *lead, height, width = planes.shape
    tall, wide = padded(height, cell[0]), padded(width, cell[1])
    if (tall, wide) != (height, width):
        rows = torch.arange(tall, device=planes.device).clamp_max(height - 1)
        columns = torch.arange(wide, device=planes.device).clamp_max(width - 1)
        planes = planes.index_select(-2, rows).index_select(-1, columns)
    split = planes.reshape(*lead, tall // cell[0], cell[0], wide // cell[1], cell[1])
    return split.transpose(-3, -2).reshape(*lead, tall * wide // (cell[0] * cell[1]), cell[0] * cell[1])


def from_cells(cells: torch.Tensor, cell: tuple[int, int], height: int, width: int) -> torch.Tensor:
    """Inverse of `to_cells`: what was repeated is cut off."""
    *lead, _, _ = cells.shape
    tall, wide = padded(height, cell[0]), padded(width, cell[1])
    split = cells.reshape(*lead, tall // cell[0], wide // cell[1], cell[0], cell[1])
    return split.transpose(-3, -2).reshape(*lead, tall, wide)[..., :height, :width]


def cell_means(planes: torch.Tensor, cell: tuple[int, int]) -> torch.Tensor:
    """fp32 `[*lead, planes, height, width]` → means `[*lead, planes, rows of cells, columns of cells]`.

    Halves of a cell's columns are added, then halves of its rows, so that every compiler and kernel adds in one order.
    Before, a power of two makes the elements small enough for any sum: a compiler may fuse that product with the sum,
    and from 2⁻¹²⁶ on it is exact.
    """
    *lead, height, width = planes.shape
    tall, wide = padded(height, cell[0]), padded(width, cell[1])
    small = planes * (1 / (_power_of_two(cell[0]) * _power_of_two(cell[1])))
    if (tall, wide) != (height, width):
        small = torch.nn.functional.pad(small, (0, wide - width, 0, tall - height))
    cells = small.reshape(*lead, tall // cell[0], cell[0], wide // cell[1], cell[1])
    total = _halved(_halved(cells, -1), -2)
    return total * _weights(height, cell[0], planes)[:, None] * _weights(width, cell[1], planes)


def _halved(x: torch.Tensor, dim: int) -> torch.Tensor:
    """Sum over `dim`, by adding the second half to the first until one is left."""
    while (size := x.shape[dim]) > 1:
        half = (size + 1) // 2
        first, second = x.narrow(dim, 0, half), x.narrow(dim, half, size - half)
        if size % 2:
            second = torch.cat((second, torch.zeros_like(second.narrow(dim, 0, 1))), dim)
        x = first + second
    return x.squeeze(dim)


def spread(means: torch.Tensor, cell: tuple[int, int], height: int, width: int) -> torch.Tensor:
    """One value per cell `[*lead, planes, rows, columns]` → one per element `[*lead, planes, height, width]`."""
    *lead, rows, columns = means.shape
    wide = means[..., :, None, :, None].expand(*lead, rows, cell[0], columns, cell[1])
    return wide.reshape(*lead, rows * cell[0], columns * cell[1])[..., :height, :width]


def _power_of_two(count: int) -> int:
    """The smallest that is not below `count`."""
    return 1 << (count - 1).bit_length()


def _weights(size: int, cell: int, like: torch.Tensor) -> torch.Tensor:
    """fp32 `[cells]`: the power of two that `cell_means` took out over the number of indices in each cell."""
    weights = torch.full((size // cell,), _power_of_two(cell) / cell, dtype=torch.float32, device=like.device)
    if size % cell == 0:
        return weights
    return torch.nn.functional.pad(weights, (0, 1), value=_power_of_two(cell) / (size % cell))
