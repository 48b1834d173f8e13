"""What `find_loss` finds: a region of a joint graph that can be computed for some tokens at a time, or why not."""

from dataclasses import dataclass

import torch
from torch import fx

from fxcompress.passes.row_ops import TokenSum
from fxcompress.passes.token_rows import Read, Rows, shape_of


@dataclass(frozen=True, slots=True)
class TokenSlice:
    """A slice along one of the token dimensions, after which fewer tokens are left."""

    sizes: tuple[int | torch.SymInt, ...]
    """Of the token dimensions before."""
    place: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Region:
    """What is to be computed chunk by chunk.

    `rows` places the tokens of each node of the region, in graph order; `reads` says how each reads its operands. Nodes
    of `exits` have one value per token, those of `sums` are summed over tokens; both are read outside. `chain` leads
    from the tangent to the region.
    """

    start: fx.Node
    rows: dict[fx.Node, Rows]
    reads: dict[fx.Node, dict[fx.Node, Read]]
    exits: tuple[fx.Node, ...]
    sums: tuple[TokenSum, ...]
    tangent: fx.Node
    chain: tuple[fx.Node, ...]
    gradient: frozenset[fx.Node]
    """Members that depend on the tangent."""
    cut: TokenSlice | None

    @property
    def members(self) -> tuple[fx.Node, ...]:
        """All nodes of the region, every one behind its operands."""
        return (*self.rows, *(total.node for total in self.sums))

    @property
    def shape(self) -> tuple[int | torch.SymInt, ...]:
        """Tokens and vocabulary."""
        return shape_of(self.start)


@dataclass(frozen=True, slots=True)
class Declined:
    """Logits that must stay whole, with the reason."""

    start: fx.Node
    reason: str
