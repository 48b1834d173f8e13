"""Sensitivities of products' operands in closed form (after ActNN, Chen et al., ICML 2021): one pass for all tensors.

Rounding puts an independent error of variance v on each element of an operand x. Where x only makes a weight gradient,

    matrix product dW = Σ_r g_r x_rᵀ:       E‖ΔdW‖² = Σ_r (Σ_c v_rc)·‖g_r‖²             r: rows, c: columns of x
    convolution, sample by sample:          E‖ΔdW‖² = Σ_n v̄_n·(C/groups)·R·S·‖g_n‖²     but for what padding cuts off

ActNN takes v = range²/(4·levels²) and chooses widths per sample. Here v is that of each element (`rounding_error`).
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx

from fxcompress.codecs.affine import Affine
from fxcompress.passes.find_saved import placeholders
from fxcompress.passes.ops import MOVES, is_view, op_name
from fxcompress.plan import Decision
from fxcompress.rounding_error import expected_square


@dataclass(frozen=True, slots=True)
class _Use:
    """One product that reads a saved tensor: its moves, the product, and the gradient that it is multiplied with."""

    moves: tuple[fx.Node, ...]
    product: fx.Node
    position: int
    gradient: fx.Node


class _Watcher(fx.Interpreter):
    """Runs a graph and keeps the results of some nodes."""

    def __init__(self, gm: fx.GraphModule, wanted: set[fx.Node]) -> None:
        super().__init__(gm)
        self._wanted = wanted
        self.found: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n in self._wanted:
            self.found[n] = result
        return result


def coefficients(bw: fx.GraphModule, decisions: Sequence[Decision], values: Sequence[Any]) -> Mapping[str, float]:
    """C with E‖Δ‖² = C/(2^bits - 1)², by tensor name, of the operands for which the closed form holds.

    Args:
        bw: backward graph that reads the tensors as they are.
        decisions: of its plan.
        values: its inputs, in the order of its placeholders.
    """
    nodes = {node.name: (node, value) for node, value in zip(placeholders(bw), values, strict=True)}
    uses = {
        d.tensor.name: found
        for d in decisions
        if d.codec == "affine" and d.tensor.need == "operand" and (found := _uses(nodes[d.tensor.name][0]))
    }
    watcher = _Watcher(bw, {use.gradient for found in uses.values() for use in found})
    watcher.run(*values)
    result = {}
    for decision in decisions:
        if decision.tensor.name in uses:
            codec = Affine(**dict(decision.params))  # type: ignore[arg-type]
            variance = expected_square(nodes[decision.tensor.name][1], codec, row=decision.row)
            parts = [_harm(use, variance, watcher.found[use.gradient]) for use in uses[decision.tensor.name]]
            result[decision.tensor.name] = sum(parts) * (2**codec.bits - 1) ** 2
    return result


def _uses(node: fx.Node) -> tuple[_Use, ...]:
    """Every product that reads `node`; empty if something else does, too."""
    found = tuple(_follow(node, ()))
    return () if None in found else tuple(use for use in found if use is not None)


def _follow(node: fx.Node, moves: tuple[fx.Node, ...]) -> Iterator[_Use | None]:
    waiting = [(node, user, moves) for user in reversed(node.users)]
    while waiting:
        value, user, before = waiting.pop()
        position = next(i for i, arg in enumerate(user.args) if arg is value)
        gradient = _partner(user, position)
        if is_view(user) or (op_name(user) in MOVES and len(user.all_input_nodes) == 1):
            waiting += [(user, reader, (*before, user)) for reader in reversed(user.users)]
        elif isinstance(gradient, fx.Node):
            yield _Use(before, user, position, gradient)
        else:
            yield None


def _partner(product: fx.Node, position: int) -> object:
    """What a product multiplies its argument at `position` with, where that is the operand of a weight gradient."""
    if op_name(product) == "mm":
        return product.args[1 - position]
    return product.args[0] if op_name(product) == "convolution_backward" and position == 1 else None


def _harm(use: _Use, variance: Tensor, gradient: Tensor) -> float:
    """E‖ΔdW‖² through one product."""
    for move in use.moves:
        args = [variance if isinstance(arg, fx.Node) else arg for arg in move.args]
        assert callable(move.target)
        variance = move.target(*args, **move.kwargs)
    squared = gradient.double().square()
    if op_name(use.product) == "mm":
        # The summed dimension is the second of the left operand and the first of the right one.
        of_rows = variance.double().sum(0 if use.position == 0 else 1)
        return float((of_rows * squared.sum(1 if use.position == 0 else 0)).sum())
    weight = use.product.args[2]
    assert isinstance(weight, fx.Node)
    taps = math.prod(weight.meta["val"].shape[1:])
    others = tuple(range(1, squared.dim()))
    return float((variance.double().mean(others) * squared.sum(others)).sum() * taps)
