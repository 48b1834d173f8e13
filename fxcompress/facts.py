"""What the analysis passes find out about one graph pair. Torch-free, frozen, JSON-able."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Need = Literal[
    "predicate",  # backward asks only yes/no questions of it: bool tensors
    "integer",  # small integers, indices, {-1,+1}: a statically known finite set of values
    "operand",  # operand of a matrix product or convolution; its error reaches only a leaf gradient
    "operand+mask",  # the same, non-negative, and its zero pattern is asked for too
    "derivative",  # argument of pointwise derivatives and normalizations; no product's operand is rebuilt from it
    "propagating",  # a product's operand or a factor of the whole gradient is rebuilt from it: its error enters others
    "logits",  # argument of a softmax, sine or scale, rows divided by their length, probabilities no product reads
    "attention",  # q, k, v, out of a fused attention kernel
    "statistic",  # mean, rstd, log-sum-exp, log-softmax, a loss's weights of rows: kept
    "weight",  # derived from parameters alone: rebuilt, never stored
    "other",  # dtype or layout that no codec takes
]
Size = int | str
"""A static size, or the text of a symbolic one."""


@dataclass(frozen=True, slots=True)
class SavedTensor:
    """One tensor that the forward graph hands to the backward graph.

    `nbytes` counts the elements the tensor itself addresses once (an expanded dimension counts 1); tensors that share a
    storage have equal `storage` and `storage_nbytes`, which is to be counted once. Symbolic sizes enter by their hint.
    """

    index: int
    name: str
    storage: str
    layer: str
    source: str
    op: str
    shape: tuple[Size, ...]
    stride: tuple[Size, ...]
    dtype: str
    nbytes: int
    storage_nbytes: int
    need: Need
    consumers: tuple[str, ...]
    values: str = ""
    refusal: str = ""
    """Why this tensor is left alone (parameter, input, user output, too small, …); empty if it may be encoded."""


@dataclass(frozen=True, slots=True)
class Peak:
    """Predicted live bytes over forward and backward; parameters and other caller-held tensors are not counted."""

    peak_bytes: int
    at: str
    """The node at which the peak stands, as `forward:name` or `backward:name`."""
    forward_peak_bytes: int
    backward_peak_bytes: int
    timeline: tuple[int, ...] = ()
    """Live bytes after each node, forward then backward."""


CALLER_HELD = ("parameter or input of the caller", "user output")
"""Refusals whose bytes the caller holds anyway, so that they are not counted as saved."""


def saved_bytes(saved: Iterable[SavedTensor]) -> int:
    """Bytes of the distinct storages saved, those that the caller holds anyway left out."""
    return sum({t.storage: t.storage_nbytes for t in saved if t.refusal not in CALLER_HELD}.values())
