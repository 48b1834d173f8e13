"""What the first order misses: errors of 1 and 2 bits are large enough for a GELU or a normalization to bend.

A tensor is stored at 1, 2 and 4 bits and the backward repeated. To the first order, the squared errors are in the
ratios that `adjoint` predicts; what a coarse one is beyond that is added to it. That is done for the tensors that
matter most; further ones of identical layers are given the largest excess found in their kind.
"""

from collections.abc import Mapping

from fxcompress.adjoint import Squares, Stored
from fxcompress.facts import SavedTensor
from fxcompress.perturbation import Repeater
from fxcompress.report.text import layer_pattern

LINEAR = ("operand", "operand+mask")
"""Need classes whose errors reach leaf gradients through a product alone."""
NEGLIGIBLE = 1e-4
"""Of all squared errors at 2 bits: tensors that add less are left as they are."""
REPEATED = 48
"""Tensors that are looked at, three backward passes each."""
_COARSE, _FINE = (2, 1), 4


def bent(
    squares: Squares, stored: Mapping[str, Stored], tensors: Mapping[str, SavedTensor], repeater: Repeater
) -> Squares:
    """Squared errors with those at 1 and 2 bits corrected.

    Args:
        squares: by tensor and codec, to the first order.
        stored: where these tensors are read, and their codecs.
        tensors: facts about them.
        repeater: repeats the backward.
    """
    at = {name: {codec.bits: i for i, codec in enumerate(stored[name].codecs)} for name in squares}
    coarse = {name: squares[name][at[name][_COARSE[0]]] for name in squares if _COARSE[0] in at[name]}
    least = NEGLIGIBLE * sum(coarse.values())
    bending = [n for n in coarse if _FINE in at[n] and tensors[n].need not in LINEAR and coarse[n] > least]
    bending.sort(key=lambda name: -coarse[name])
    found = {name: list(own) for name, own in squares.items()}
    largest: dict[tuple[object, int], float] = {}
    for number, name in enumerate(bending):
        kind = _kind(tensors[name])
        excesses = _excesses(squares[name], at[name], stored[name], repeater) if number < REPEATED else {}
        for bits in at[name].keys() & _COARSE:
            known = largest.get((kind, bits), 0.0)
            excess = excesses.get(bits, known)
            largest[kind, bits] = max(excess, known)
            found[name][at[name][bits]] += excess
    return found


def _excesses(squares: list[float], at: Mapping[int, int], entry: Stored, repeater: Repeater) -> dict[int, float]:
    """‖ΔG‖² of coarse widths beyond what 4 bits and the first order make expect; not below what would leave a tenth."""

    def measured(bits: int) -> float:
        return repeater.squared_error([(entry, entry.codecs[at[bits]], bits)])

    finer = squares[at[_FINE]]
    if not finer:
        return {}
    ratio = measured(_FINE) / finer
    coarse = {bits: squares[at[bits]] for bits in _COARSE if bits in at}
    return {bits: max(measured(bits) - ratio * first, -0.9 * first) for bits, first in coarse.items()}


def _kind(tensor: SavedTensor) -> object:
    """Equal for tensors of identical layers."""
    return (layer_pattern(tensor.layer), tensor.op, tensor.shape, tensor.dtype, tensor.need, tensor.consumers)
