"""What the first order misses: errors of 1 and 2 bits are large enough for a GELU or a normalization to bend.

A tensor is stored at 1 and at 2 bits and the backward repeated; what the squared error is beyond the first order that
`adjoint` predicts is added to it. That is done for the tensors that matter most; further ones of identical layers are
given the largest excess found in their kind. At 4 bits the first order is right.
"""

from collections.abc import Mapping
from statistics import fmean

from fxcompress.adjoint import Squares, Stored
from fxcompress.facts import SavedTensor
from fxcompress.perturbation import Repeater
from fxcompress.report.text import layer_pattern

LINEAR = ("operand", "operand+mask")
"""Need classes whose errors reach leaf gradients through a product alone."""
NEGLIGIBLE = 1e-4
"""Of all squared errors at 2 bits: tensors that add less are left as they are."""
REPEATED = 48
"""Tensors that are looked at, two backward passes for each coarse width."""
_COARSE, _DRAWS = (2, 1), 2


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
    bending = [n for n in coarse if tensors[n].need not in LINEAR and coarse[n] > least]
    bending.sort(key=lambda name: -coarse[name])
    found = {name: list(own) for name, own in squares.items()}
    largest: dict[tuple[object, int], float] = {}
    for number, name in enumerate(bending):
        kind = _kind(tensors[name])
        for bits in (width for width in _COARSE if width in at[name]):
            place, known = at[name][bits], largest.get((kind, bits), 0.0)
            excess = known
            if number < REPEATED:
                excess = _measured(stored[name], place, repeater) - squares[name][place]
            largest[kind, bits] = max(excess, known)
            found[name][place] += excess
    return found


def _measured(entry: Stored, place: int, repeater: Repeater) -> float:
    """Mean ‖ΔG‖² over draws of the rounding noise; the noise of one is up to half of it where channels are few."""
    codec = entry.codecs[place]
    return fmean(repeater.squared_error([(entry, codec, 8 * draw + codec.bits)]) for draw in range(_DRAWS))


def _kind(tensor: SavedTensor) -> object:
    """Equal for tensors of identical layers."""
    return (layer_pattern(tensor.layer), tensor.op, tensor.shape, tensor.dtype, tensor.need, tensor.consumers)
