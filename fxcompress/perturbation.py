"""How storing tensors changes the gradient, by doing it and repeating the backward.

For what the derivative of `adjoint` does not tell: errors that pass through an operator that has none, how far errors
of 2 bits are beyond the first order, and what errors do together.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from fxcompress.adjoint import Stored, random_signs
from fxcompress.codecs.affine import Affine
from fxcompress.codecs.order import from_rows, order_in_rows, to_rows
from fxcompress.rounding_error import expected_square


class Repeater:
    """A backward graph on given inputs, its exact gradients at hand."""

    def __init__(self, bw: fx.GraphModule, values: Sequence[Any]) -> None:
        self._bw, self._values = bw, values
        self._exact = self._gradients({})

    def squared_error(self, stored: Sequence[tuple[Stored, Affine, int]]) -> float:
        """‖ΔG‖² where tensors are stored, each with a codec and the name of its rounding noise."""
        changed = self._gradients({node: each for each in stored for node in each[0].nodes})
        pairs = zip(changed, self._exact, strict=True)
        return sum(float((ours - theirs).double().square().sum()) for ours, theirs in pairs)

    def _gradients(self, stored: Mapping[fx.Node, tuple[Stored, Affine, int]]) -> list[Tensor]:
        with torch.no_grad():
            results = _Storing(self._bw, stored).run(*self._values)
        return [r for r in results if isinstance(r, Tensor) and r.is_floating_point()]


class _Storing(fx.Interpreter):
    """Runs a graph in which some nodes are stored anew."""

    def __init__(self, bw: fx.GraphModule, stored: Mapping[fx.Node, tuple[Stored, Affine, int]]) -> None:
        super().__init__(bw)
        self._stored = stored

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n not in self._stored:
            return result
        entry, codec, salt = self._stored[n]
        return _stored(result, entry, codec, salt)


def _stored(value: Tensor, entry: Stored, codec: Affine, salt: int) -> Tensor:
    """What comes back from `codec`; on values that its codes can express, an error of the size it has on others."""
    order = order_in_rows(value, entry.row)
    if (entry.bits and codec.bits >= entry.bits) or order is None:
        square = expected_square(value, codec, coded_bits=entry.bits, row=entry.row)
        error = square.sqrt() * random_signs(value, salt)
        changed = value + error.to(value.dtype)
        return torch.where((changed > 0) == (value > 0), changed, value) if codec.sign_preserving else changed
    rows = codec.decode(codec.encode(to_rows(value, order), salt), order.cols, value.dtype)
    return from_rows(rows.contiguous(), order)  # what reads it views it as what was saved
