"""Chains of pointwise operators that a kernel computes next to encodes, as text. Needs no Triton."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Chain:
    """What a kernel computes of each element, before it knows sizes and dtypes.

    Attributes:
        inputs: names of what it loads.
        repeated: those of them that are shorter than the others and begin anew where they end.
        steps: (name, Triton expression of fp32 values named before), in order.
        stored: names of the values that it stores.
        encoded: names of the values that it quantizes, none of them stored: what is both has two names.
        masks: names of booleans that it packs into bits.
        over: (stored value, input of its size and dtype that nobody reads afterwards, whose memory it may take).
    """

    inputs: tuple[str, ...]
    steps: tuple[tuple[str, str], ...]
    stored: tuple[str, ...]
    encoded: tuple[str, ...]
    masks: tuple[str, ...] = ()
    repeated: tuple[str, ...] = ()
    over: tuple[tuple[str, str], ...] = ()
