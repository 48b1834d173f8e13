"""Which values are divided by the lengths of their own rows, as embeddings are that are compared by their angle.

The backward subtracts from each gradient its part along the row. Where the embeddings to be compared are close, that
part is nearly all of it, and an error of the row, which is one of its direction, is large beside the rest. Read-only.
"""

import torch
from torch import fx

from fxcompress.passes.follow import follow
from fxcompress.passes.ops import MOVES, is_square, op_name

_ROOTS = frozenset(["sqrt", "rsqrt"])


def has_length_taken(node: fx.Node) -> bool:
    """Whether the forward takes the length of each row of `node`, along its last dimension."""
    return any(_is_length(user, value) for value in follow([node], _moved) for user in value.users)


def _moved(node: fx.Node) -> list[fx.Node]:
    return [user for user in node.users if op_name(user) in MOVES]


def _is_length(node: fx.Node, value: fx.Node) -> bool:
    if op_name(node) == "linalg_vector_norm":
        order = node.args[1] if len(node.args) > 1 else 2
        return bool(order == 2) and _is_along_rows(node.args[2] if len(node.args) > 2 else None, value)
    sums = [user for user in node.users if op_name(user) == "sum" and len(user.args) > 1] if is_square(node) else []
    return any(_is_along_rows(total.args[1], value) and any(map(_is_root, total.users)) for total in sums)


def _is_root(node: fx.Node) -> bool:
    return op_name(node) in _ROOTS or (op_name(node) == "pow" and node.args[1] in (0.5, -0.5))


def _is_along_rows(dims: object, value: fx.Node) -> bool:
    val = value.meta.get("val")
    return isinstance(val, torch.Tensor) and isinstance(dims, (list, tuple)) and list(dims) in ([-1], [val.dim() - 1])
