"""Which factors of a loss's gradient are numbers that whole rows are multiplied with, as the weights of samples are.

An error of such a number is one of everything that the row's gradient reaches, and numbers of other rows may be far
larger: the noise levels of a diffusion loss span three orders of magnitude. Beside their rows they take no room.
Read-only.
"""

import math
from collections.abc import Set

import torch
from torch import fx

from fxcompress.passes.follow import follow
from fxcompress.passes.ops import is_pointwise

_LEAST = 8
"""Elements of a row from which on its number is small beside it."""


def find_row_numbers(factors: Set[fx.Node], gradients: Set[fx.Node]) -> set[fx.Node]:
    """Those of `factors`, as `find_loss_factors` gives them, that the backward spreads over rows.

    `gradients` are its nodes that depend on a tangent.
    """
    return {node for node in factors if _is_spread(node, gradients)}


def _is_spread(saved: fx.Node, gradients: Set[fx.Node]) -> bool:
    """Whether the backward spreads `saved`, or what it makes of it, over rows."""

    def further(value: fx.Node) -> list[fx.Node]:
        return [user for user in value.users if is_pointwise(user) and user not in gradients]

    readers = ((value, user) for value in follow([saved], further) for user in value.users)
    return any(is_pointwise(user) and _spreads(value, user) for value, user in readers)


def _spreads(number: fx.Node, result: fx.Node) -> bool:
    """Whether each element of `number` serves a whole row, in its last dimensions, of `result`."""
    one, many = (getattr(node.meta.get("val"), "shape", torch.Size()) for node in (number, result))
    last = next((i for i, size in enumerate(reversed(one)) if str(size) != "1"), len(one))
    row = many[len(many) - last :] if len(one) == len(many) else ()
    return all(isinstance(size, int) for size in row) and math.prod(row) >= _LEAST
