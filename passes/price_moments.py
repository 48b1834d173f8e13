"""What it costs to hold a value from the forward to the backward, given what a byte costs at each moment.

A price per byte cannot tell two values of one size apart. Prices per moment can: one that is not alive where memory is
short costs nothing to save. Read-only.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate

from torch import fx

from fxcompress.passes.estimate_cut import Estimate
from fxcompress.passes.find_cuts import Way
from fxcompress.passes.lifetimes import INTERPRETED_DECODE, INTERPRETED_ENCODE


def price_moments(estimate: Estimate, prices: Sequence[tuple[int, float]]) -> Callable[[fx.Node, Way], float]:
    """What the bytes of a value cost in seconds if it is saved in one of its ways.

    A value that is not saved is gone after its last reader in the forward and there again at its first one in the
    backward, as under the cut estimated; saving it costs what its bytes do in between.

    Args:
        estimate: a cut.
        prices: seconds per byte at some of its slots.
    """
    lifetimes, sketch = estimate.lifetimes, estimate.sketch
    at = [0.0] * len(lifetimes.rest_bytes)
    for slot, price in prices:
        at[slot] += price
    before = [0.0, *accumulate(at)]
    turn, end = lifetimes.turn, len(lifetimes.rest_bytes)
    forward = _slots(sketch.forward.nodes, lifetimes.names[:turn], 0)
    backward = _slots(sketch.backward.nodes, lifetimes.names[turn:], turn)
    interpreted = not sketch.model.machine.fused

    def cost(node: fx.Node, way: Way) -> float:
        if not way.nbytes:
            return 0.0
        made = forward.get(node, 0)
        left = max((forward[user] for user in node.users if user in forward), default=made)
        back = min((backward[user] for user in node.users if user in backward), default=end)
        seconds = way.nbytes * (before[back] - before[min(left + 1, back)])
        if interpreted and way.seconds:
            seconds += way.whole_nbytes * (INTERPRETED_ENCODE * at[made] + INTERPRETED_DECODE * at[min(back, end - 1)])
        return seconds

    return cost


def _slots(nodes: Iterable[fx.Node], names: Sequence[str], first: int) -> dict[fx.Node, int]:
    """The slot at which each node runs: that of the last step that began with or before it."""
    places = {name: slot for slot, name in enumerate(names, first)}
    found, slot = {}, first
    for node in nodes:
        slot = max(slot, places.get(node.name, slot))
        found[node] = slot
    return found
