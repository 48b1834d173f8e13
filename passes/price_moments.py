"""What it costs to have a value in the backward, given what a byte costs at each moment.

A price per byte cannot tell two values of one size apart. Prices per moment can: one that is not alive where memory is
short costs nothing to save, and one that is computed again just there costs as much as one that was kept. Read-only.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from torch import fx

from fxcompress.passes.alias import nbytes_of
from fxcompress.passes.estimate_cut import Estimate
from fxcompress.passes.find_cuts import Way, tensor_of


@dataclass(frozen=True, slots=True)
class Moments:
    """Prices per byte, and when each node runs under the cut that they are of.

    A value that is not saved is gone after its last reader in the forward, and there again from where the backward
    computes it (or first reads it) to its last reader.
    """

    at: Sequence[float]
    before: Sequence[float]
    """`before[t]` sums the prices of the slots before t."""
    forward: Mapping[fx.Node, int]
    backward: Mapping[fx.Node, int]
    stored: frozenset[str]
    """Names of the steps of the backward."""
    fused: bool

    def holding_s(self, node: fx.Node, way: Way) -> float:
        """Seconds that the bytes of a value are worth which is saved in one of its ways."""
        if not way.nbytes:
            return 0.0
        end = len(self.at)
        made = self.forward.get(node, 0)
        left = max((self.forward[user] for user in node.users if user in self.forward), default=made) + 1
        first, last = self._used(node, end)
        if way.working_nbytes is None:
            return way.nbytes * self._sum(left, last + 1)
        encode, decode = way.working_nbytes
        again = 0.0 if self.fused else self.again_s(node)
        return (
            way.nbytes * self._sum(left, first) + encode * self.at[made] + decode * self.at[min(first, end - 1)] + again
        )

    def again_s(self, node: fx.Node) -> float:
        """Seconds that its bytes are worth if it is computed again."""
        tensor = tensor_of(node)
        if tensor is None or (self.fused and node.name not in self.stored):
            return 0.0
        first, last = self._used(node, len(self.at))
        return nbytes_of(tensor) * self._sum(min(self.backward.get(node, first), first), last + 1)

    def _used(self, node: fx.Node, end: int) -> tuple[int, int]:
        """The first and the last slot of the backward that reads a value."""
        slots = [self.backward[user] for user in node.users if user in self.backward]
        return min(slots, default=end), max(slots, default=end - 1)

    def _sum(self, first: int, end: int) -> float:
        return self.before[end] - self.before[min(first, end)]


def price_moments(estimate: Estimate, prices: Sequence[tuple[int, float]]) -> Moments:
    """Price the moments of a cut.

    Args:
        estimate: the cut.
        prices: seconds per byte at some of its slots.
    """
    lifetimes, sketch = estimate.lifetimes, estimate.sketch
    at = [0.0] * len(lifetimes.rest_bytes)
    for slot, price in prices:
        at[slot] += price
    turn = lifetimes.turn
    return Moments(
        at,
        [0.0, *accumulate(at)],
        _slots(sketch.forward.nodes, lifetimes.names[:turn], 0),
        _slots(sketch.backward.nodes, lifetimes.names[turn:], turn),
        frozenset(lifetimes.names[turn:]),
        sketch.model.machine.fused,
    )


def _slots(nodes: Iterable[fx.Node], names: Sequence[str], first: int) -> dict[fx.Node, int]:
    """The slot at which each node runs: that of the last step that began with or before it."""
    places = {name: slot for slot, name in enumerate(names, first)}
    found, slot = {}, first
    for node in nodes:
        slot = max(slot, places.get(node.name, slot))
        found[node] = slot
    return found
