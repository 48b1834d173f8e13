"""What errors do together that none does alone: the whole plan, tried on the values that calibrate it.

Errors of different tensors are independent, and to the first order they add up. At 1 and 2 bits they are large enough
to meet: one bends what another goes through. So the plan that the limit leads to is tried in a few more backward
passes, those of 1 and 2 bits are taken for larger or smaller by what was missed, and the plan that follows is tried.

Where a gradient depends on few sums over all elements, one draw of the rounding noise in twenty has several times the
mean square of all. So the middle of the draws must exceed a prediction to raise it, and all must lie below to lower it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import median

from fxcompress.adjoint import Squares, Stored
from fxcompress.passes.choose import Encoding
from fxcompress.perturbation import Repeater
from fxcompress.solve.error_limit import Way, cheapest

ROUNDS = 4
"""Plans tried."""
CLOSE = 1.02
"""A squared error that is predicted to within this factor is accepted."""
_COARSE, _DRAWS = (1, 2), 5


def joined(
    squares: Squares,
    stored: Mapping[str, Stored],
    encodings: Sequence[Encoding],
    limit: float,
    repeater: Repeater,
) -> Squares:
    """Squared errors with which the plan of fewest bytes within `limit` is as exact as it is predicted to be.

    Args:
        squares: by tensor and codec.
        stored: where these tensors are read, and their codecs.
        encodings: of these storages, for their sizes.
        limit: of ‖ΔG‖².
        repeater: repeats the backward.
    """
    found = squares
    sizes = {encoding.storage.members[0].bw.name: encoding for encoding in encodings}
    names = [name for name in squares if name in sizes]
    for _ in range(ROUNDS):
        items = [_ways(sizes[name], stored[name], found[name]) for name in names]
        plan = cheapest(items, limit)
        taken = [(stored[name], r, salt) for salt, (name, r) in enumerate(zip(names, plan.chosen, strict=True)) if r]
        if not taken or not plan.error:
            break
        excess = _missed(plan.error, [
            repeater.squared_error([(entry, entry.codecs[r - 1], salt + draw * len(names)) for entry, r, salt in taken])
            for draw in range(_DRAWS)
        ])  # fmt: skip
        if not excess:
            break
        coarse = sum(
            found[n][r - 1] for n, r in zip(names, plan.chosen, strict=True) if r and _bits(stored[n], r) in _COARSE
        )
        found = {name: _corrected(own, stored[name], excess, coarse, plan.error) for name, own in found.items()}
    return found


def _missed(predicted: float, drawn: Sequence[float]) -> float:
    """What is to be added to a predicted square; 0 where the draws say nothing against it."""
    middle, highest = median(drawn), max(drawn)
    if middle > CLOSE * predicted:
        return middle - predicted
    return highest - predicted if CLOSE * highest < predicted else 0.0


def _bits(entry: Stored, way: int) -> int:
    return entry.codecs[way - 1].bits


def _corrected(squares: Sequence[float], entry: Stored, excess: float, coarse: float, whole: float) -> list[float]:
    """Squares changed in proportion, so that a plan has the excess besides: coarse ones, if there is enough of them."""
    some = abs(excess) < coarse
    factor = 1 + excess / (coarse if some else whole)
    return [s * factor if c.bits in _COARSE or not some else s for s, c in zip(squares, entry.codecs, strict=True)]


def _ways(encoding: Encoding, entry: Stored, squares: Sequence[float]) -> list[Way]:
    """Kept, and at each width."""
    sizes = [replace(encoding, codec=codec).nbytes for codec in entry.codecs]
    packed = [Way(float(size), square) for size, square in zip(sizes, squares, strict=True)]
    return [Way(float(encoding.storage.nbytes), 0.0), *packed]
