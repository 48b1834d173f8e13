"""How storing one tensor changes the gradient where no derivative can be had: perturb it and repeat the backward.

A backward pass per tensor, at one of its codecs; the others follow by the ratio of their variances.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from fxcompress.adjoint import Squares, Stored, random_signs
from fxcompress.rounding_error import expected_square


def perturbed_errors(bw: fx.GraphModule, stored: Mapping[str, Stored], values: Sequence[Any]) -> Squares:
    """E‖ΔG‖² of each tensor under each of its codecs, as `adjoint.squared_errors`, from one draw of its errors."""
    found: Squares = {}
    with torch.no_grad():
        exact = _gradients(_Perturbed(bw, {}), values)
        for number, (name, entry) in enumerate(stored.items()):
            runner = _Perturbed(bw, {node: (entry, number) for node in entry.nodes})
            distance = sum(
                float((ours - theirs).double().square().sum())
                for ours, theirs in zip(_gradients(runner, values), exact, strict=True)
            )
            tried = runner.variances[_tried(entry)]
            found[name] = [distance * variance / tried if tried else 0.0 for variance in runner.variances]
    return found


def _tried(entry: Stored) -> int:
    return len(entry.codecs) // 2


class _Perturbed(fx.Interpreter):
    """Runs a graph with errors of random sign put on some nodes."""

    def __init__(self, bw: fx.GraphModule, errors: Mapping[fx.Node, tuple[Stored, int]]) -> None:
        super().__init__(bw)
        self._errors = errors
        self.variances: list[float] = []

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n not in self._errors:
            return result
        entry, seed = self._errors[n]
        squares = [expected_square(result, codec, coded_bits=entry.bits) for codec in entry.codecs]
        totals = [float(square.double().sum()) for square in squares]
        self.variances = [a + b for a, b in zip(self.variances or [0.0] * len(totals), totals, strict=True)]
        error = squares[_tried(entry)].sqrt() * random_signs(result, seed)
        return result + error.to(result.dtype)


def _gradients(runner: _Perturbed, values: Sequence[Any]) -> list[Tensor]:
    return [r for r in runner.run(*values) if isinstance(r, Tensor) and r.is_floating_point()]
