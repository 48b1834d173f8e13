"""How a tensor lies in memory, as the codecs see it: `[*lead, cols]` with static contiguous `cols`."""

from dataclasses import dataclass

import torch

from fxcompress.codecs import order

Size = int | torch.SymInt


@dataclass(frozen=True, slots=True)
class Layout:
    """Dimensions from slowest to fastest (`permutation`), and their sizes in that order."""

    permutation: tuple[int, ...]
    sizes: tuple[Size, ...]

    @property
    def lead(self) -> tuple[Size, ...]:
        return order.split(self.sizes)[0]

    @property
    def cols(self) -> int:
        return order.split(self.sizes)[1]


def find_layout(val: torch.Tensor) -> Layout | None:
    """The layout of a dense tensor; None if its elements do not fill one block of memory."""
    if not order.is_dense(val.shape, val.stride()):
        return None
    permutation = order.permutation(val.shape, val.stride())
    return Layout(permutation, tuple(val.shape[dim] for dim in permutation))


def to_rows(x: torch.Tensor, layout: Layout) -> torch.Tensor:
    return order.to_rows(x, layout.permutation)


def from_rows(rows: torch.Tensor, layout: Layout) -> torch.Tensor:
    """Undo `to_rows`; symbolic sizes are read off `rows`, so that nothing else need be saved for them."""
    lead = len(layout.lead)
    in_memory = [*rows.shape[:lead], *layout.sizes[lead:]]
    sizes: list[Size] = [0] * len(in_memory)
    for position, dim in enumerate(layout.permutation):
        sizes[dim] = in_memory[position]
    return order.from_rows(rows, sizes, layout.permutation)
