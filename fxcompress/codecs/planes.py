"""Two orders of the same arithmetic: whole groups for a CPU, planes for a GPU. Results are equal bit for bit.

A GPU kernel holds a group in registers only if everything that it computes from the group runs over one index space.
Packing puts elements of several planes (equal slices of the group) into one byte, so there the statistics and the
rounding must run over the planes, too: one kernel reads the group once. A CPU's vectors want the long contiguous axis.
"""

import functools
from collections.abc import Sequence

import torch


def wanted(x: torch.Tensor) -> bool:
    """Whether tensors like `x` are encoded plane by plane."""
    return x.device.type != "cpu"


def split(grouped: torch.Tensor, count: int) -> torch.Tensor:
    """`[*lead, groups, G]` → `[*lead, groups, count, G/count]`."""
    *lead, size = grouped.shape
    return grouped.reshape(*lead, count, size // count)


def unbind(grouped: torch.Tensor, count: int) -> tuple[torch.Tensor, ...]:
    """`[*lead, groups, G]` → `count` planes `[*lead, groups, G/count]`."""
    return split(grouped, count).unbind(-2)


def lowest(planes: Sequence[torch.Tensor]) -> torch.Tensor:
    """Minimum over each group, `[*lead, groups]`."""
    return functools.reduce(torch.minimum, planes).amin(-1)


def highest(planes: Sequence[torch.Tensor]) -> torch.Tensor:
    """Maximum over each group, `[*lead, groups]`."""
    return functools.reduce(torch.maximum, planes).amax(-1)


def merge(planes: Sequence[torch.Tensor]) -> torch.Tensor:
    """Bits of all planes together; no bit may be set in two."""
    return functools.reduce(torch.bitwise_or, planes)
