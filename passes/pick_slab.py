"""Pick how codes of a finite set of values share bytes on a CPU: with those at the same place in other slabs of memory.

Inductor's loops run along memory, sixteen elements at a time. Where neighbours share bytes, as GPUs want it, a loop
over channels that are no multiple of a block divides indices for every element it unpacks; where slabs of the slowest
dimensions do, it reads bytes as they lie and shifts all sixteen by the same number of bits.
"""

import math
from dataclasses import replace

import torch

from fxcompress.codecs import lowering
from fxcompress.codecs.base import Codec
from fxcompress.codecs.order import MemoryOrder
from fxcompress.codecs.valueset import Valueset
from fxcompress.passes import devices

SHARING = 8
"""Slabs that may share bytes: as many as a byte has bits."""
SHORTEST = 16
"""Elements of a slab: what a loop takes at a time."""


def pick_slab(codec: Codec, order: MemoryOrder, val: torch.Tensor) -> Codec:
    """The codec with slabs, where it stores a finite set of values of a tensor on a CPU that has some; else as it is.

    Args:
        codec: picked for the tensor.
        order: how the tensor lies in memory.
        val: the tensor.
    """
    if not isinstance(codec, Valueset) or lowering.wanted(val) or not devices.is_on_cpu(val):
        return codec
    return replace(codec, slab=slab_of(order))


def slab_of(order: MemoryOrder) -> int:
    """Elements of the largest slabs that rows are a multiple of eight of, in whole dimensions; 0 if there are none."""
    for cut in range(1, len(order.tail) + 1):
        slab = math.prod(order.tail[cut:])
        if math.prod(order.tail[:cut]) % SHARING == 0:
            # A row of one dimension is one slab per bit.
            slab = order.cols // SHARING if len(order.tail) == 1 else slab
            return slab if slab >= SHORTEST else 0
    return 0
