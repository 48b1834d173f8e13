"""Let rows of a codec run on across the dimensions of a tensor whose own rows are short.

Codes fill rows of static size, and what lies behind a symbolic size is short: one element for the maps `[N, C, H, W]`
and sequences `[N, C, T]` of a dynamic length, and for masks and probabilities `[N, heads, T, T]`. Rows of their own
would take more than the tensor. Read-only.
"""

import torch
from torch import fx

from fxcompress.codecs import lowering
from fxcompress.codecs.base import Codec, payload_nbytes
from fxcompress.codecs.order import MemoryOrder
from fxcompress.passes.alias import elements_in
from fxcompress.passes.row_groups import WHOLE, row_group

_SHARE = 0.8
"""Of the bytes in the tensor's own rows, at most: what runs on costs the arithmetic of symbolic sizes."""


def fill_rows(codec: Codec, order: MemoryOrder, source: fx.Node) -> MemoryOrder:
    """The memory order in which `codec` is to store `source`: `order`, or one whose rows run on.

    Args:
        codec: picked for the tensor.
        order: how it lies in memory, in rows of its own.
        source: what is to be stored. Where a normalization reads short rows of it, they share no scale.
    """
    if all(isinstance(size, int) for size in order.lead) or not codec.period or row_group(source, order):
        return order
    filled, val = order.filling(codec.period * -(-WHOLE // codec.period)), source.meta["val"]
    if lowering.wanted(val) and codec.contract.kind != "exact" and lowering.find(codec, filled.cols, val.dtype) is None:
        return order  # Inductor's own reductions over such rows may fail there (`pick_lowering`).
    fewer = encoded_nbytes(codec, filled, val.dtype) <= _SHARE * encoded_nbytes(codec, order, val.dtype)
    return filled if fewer else order


def order_of_row(order: MemoryOrder, row: int) -> MemoryOrder | None:
    """The memory order that a plan states as rows of `row` elements, 0: as they are; None if there is none."""
    ended = order.ended_at(row)
    return order.filling(row) if ended is None and order.lead else ended


def encoded_nbytes(codec: Codec, order: MemoryOrder, dtype: torch.dtype) -> int:
    """Exact payload bytes; symbolic sizes enter by their hint."""
    return payload_nbytes(codec, elements_in(order.lead), order.cols, dtype)
