"""What the first order misses: errors of 2 bits are large enough for a GELU or a normalization to bend.

A tensor is stored at 2 and at 4 bits and the backward repeated. To the first order the two squared errors are in the
ratio that `adjoint` predicts; what the ratio is more than that is the factor by which 2 bits are worse. Tensors of
identical layers share one factor, so that the number of passes does not grow with the depth of the model.
"""

from collections.abc import Mapping

from fxcompress.adjoint import Squares, Stored
from fxcompress.facts import SavedTensor
from fxcompress.perturbation import Repeater
from fxcompress.report.text import layer_pattern

LINEAR = ("operand", "operand+mask")
"""Need classes whose errors reach leaf gradients through a product alone."""
NEGLIGIBLE = 1e-4
"""Of all squared errors at 2 bits: layers that add less are left as they are."""
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
    both = [name for name in squares if {_COARSE, _FINE} <= at[name].keys() and tensors[name].need not in LINEAR]
    total = sum(squares[name][at[name][_COARSE]] for name in squares if _COARSE in at[name])
    alike: dict[object, list[str]] = {}
    for name in both:
        alike.setdefault(_kind(tensors[name]), []).append(name)
    found = {name: list(own) for name, own in squares.items()}
    for names in alike.values():
        added = {name: squares[name][at[name][_COARSE]] for name in names}
        if sum(added.values()) > NEGLIGIBLE * total:
            name = max(added, key=added.__getitem__)
            factor = _factor(squares[name], at[name], stored[name], repeater)
            for each in names:
                found[each][at[each][_COARSE]] *= factor
    return found


def _factor(squares: list[float], at: Mapping[int, int], entry: Stored, repeater: Repeater) -> float:
    coarse, fine = (repeater.squared_error(entry, entry.codecs[at[bits]], bits) for bits in (_COARSE, _FINE))
    expected = squares[at[_COARSE]] / squares[at[_FINE]] if squares[at[_FINE]] else 0.0
    return coarse / fine / expected if fine and expected else 1.0


def _kind(tensor: SavedTensor) -> object:
    """Equal for tensors of identical layers."""
    return (layer_pattern(tensor.layer), tensor.op, tensor.shape, tensor.dtype, tensor.need, tensor.consumers)
