"""What the first order misses: errors of 2 bits are large enough for a GELU or a normalization to bend.

A tensor is stored at 2 and at 4 bits and the backward repeated. To the first order, the two squared errors are in the
ratio that `adjoint` predicts; what the coarser one is beyond that is added to it. That is done for the tensors that
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
"""Tensors that are looked at, two backward passes each."""
_COARSE, _FINE = 2, 4


def bent(
    squares: Squares, stored: Mapping[str, Stored], tensors: Mapping[str, SavedTensor], repeater: Repeater
) -> Squares:
    """Squared errors with those at 2 bits corrected.

    Args:
        squares: by tensor and codec, to the first order.
        stored: where these tensors are read, and their codecs.
        tensors: facts about them.
        repeater: repeats the backward.
    """
    at = {name: {codec.bits: i for i, codec in enumerate(stored[name].codecs)} for name in squares}
    coarse = {name: squares[name][at[name][_COARSE]] for name in squares if _COARSE in at[name]}
    least = NEGLIGIBLE * sum(coarse.values())
    bending = [n for n in coarse if _FINE in at[n] and tensors[n].need not in LINEAR and coarse[n] > least]
    bending.sort(key=lambda name: -coarse[name])
    found = {name: list(own) for name, own in squares.items()}
    excesses: dict[object, float] = {}
    for number, name in enumerate(bending):
        kind = _kind(tensors[name])
        if number < REPEATED:
            excess = _excess(squares[name], at[name], stored[name], repeater)
            excesses[kind] = max(excess, excesses.get(kind, 0.0))
        else:
            excess = excesses.get(kind, 0.0)
        found[name][at[name][_COARSE]] += excess
    return found


def _excess(squares: list[float], at: Mapping[int, int], entry: Stored, repeater: Repeater) -> float:
    """‖ΔG‖² at 2 bits beyond what 4 bits and the first order make expect; not below what would leave a tenth."""
    coarse, fine = (repeater.squared_error([(entry, entry.codecs[at[bits]], bits)]) for bits in (_COARSE, _FINE))
    first, finer = squares[at[_COARSE]], squares[at[_FINE]]
    return max(coarse - fine * first / finer, -0.9 * first) if finer else 0.0


def _kind(tensor: SavedTensor) -> object:
    """Equal for tensors of identical layers."""
    return (layer_pattern(tensor.layer), tensor.op, tensor.shape, tensor.dtype, tensor.need, tensor.consumers)
