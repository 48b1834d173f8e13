"""The expected squared error of each element that affine codes store.

With f an element's own fraction of a step, stochastic rounding has the variance step²·f·(1 - f), and nearest rounding
the squared distance step²·min(f, 1 - f)². Zeros that a code stands for have no error and count for nothing.

Of values that were themselves decoded from codes as fine or finer, f is not known any more. It is then taken as
uniform, which makes step²/6 and step²/12, but for elements on the group's lowest code.
"""

import torch
from torch import Tensor

from fxcompress.codecs.affine import Affine
from fxcompress.codecs.affine.reference import read_word
from fxcompress.codecs.groups import to_groups
from fxcompress.codecs.order import from_rows, order_in_rows, to_rows


def expected_square(value: Tensor, codec: Affine, *, coded_bits: int = 0, row: int = 0) -> Tensor:
    """E[(decode(encode(x)) - x)²] per element, in the sizes of `value`, float32.

    Args:
        value: what is stored, or what was decoded from affine codes of it with `coded_bits` bits.
        codec: how it would be stored.
        coded_bits: 0 for the values themselves.
        row: elements after which a group ends, as in `Decision.row`.
    """
    order = order_in_rows(value, row) or order_in_rows(value := value.contiguous(), row)
    assert order is not None
    rows = to_rows(value, order)
    _, word = codec.encode(rows, 0)
    grouped = _by_head(rows, codec) if codec.heads else to_groups(rows, codec.group)
    step, zero = read_word(word)
    if codec.sign_preserving:
        step, zero = torch.where(grouped > 0, step, zero), torch.zeros_like(zero)
    place = (grouped.to(torch.float32) - zero) / step
    stochastic = codec.rounding == "stochastic"
    if coded_bits and coded_bits <= codec.bits:
        share = torch.full_like(place, 1 / 6 if stochastic else 1 / 12) * (place != 0)
    else:
        part = place - place.floor()
        share = part * (1 - part) if stochastic else torch.minimum(part, 1 - part).square()
    if codec.zero_preserving:
        share = share * (grouped > 0)
    squared = share * step.square()
    if codec.heads:
        size = order.cols // codec.heads
        heads = squared.reshape(*squared.shape[:-1], size // codec.dim, codec.dim).transpose(-3, -2)
        return from_rows(heads.flatten(-3), order)
    return from_rows(squared.flatten(-2)[..., : order.cols], order)


def _by_head(rows: Tensor, codec: Affine) -> Tensor:
    """`[*lead, cols]` → `[*lead, heads, elements of one]`."""
    return rows.reshape(*rows.shape[:-1], -1, codec.heads, codec.dim).transpose(-3, -2).flatten(-2)
