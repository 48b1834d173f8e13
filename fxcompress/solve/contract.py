"""Make a flow network smaller by merging vertices that the best cut does not separate, whatever its finite capacities.

An infinite edge ties its head to its tail: where that is the head's only way in, or the tail's only way out, both lie
on one side of the minimum cut nearest the source. So does what is tied to the source or the sink. What is left of a
joint graph's network are the places where cuts differ; it is made once and cut at many prices.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from fxcompress.solve.maxflow import INFINITE, FlowNetwork

Pair = tuple[int, int]
"""Tail and head."""
Way = tuple[int, int, int]
"""Tail, head and number of a finite edge."""


@dataclass(frozen=True, slots=True)
class Contracted:
    """What is left. `edges`: for each finite edge of the original that may be cut, the edge of `network` it became.

    Several may have become one, whose capacity is then their sum.
    """

    network: FlowNetwork
    source: int
    sink: int
    edges: dict[int, int]


def contract(network: FlowNetwork, source: int, sink: int) -> Contracted:
    """Contract a network. Edges of capacity `INFINITE` are infinite; all others may be given any capacity later.

    Raises:
        ValueError: infinite edges lead from the source to the sink.
    """
    leader = list(range(network.vertices))
    ends = {e: (network.heads[e ^ 1], network.heads[e]) for e in range(0, len(network.heads), 2)}
    tied = {ends[e] for e in ends if network.capacity[e] >= INFINITE}
    ways = {(*ends[e], e) for e in ends if network.capacity[e] < INFINITE}
    count = -1
    while count != len(tied) + len(ways):
        count = len(tied) + len(ways)
        tied, ways = _alive(tied, ways, source, sink)
        _merge(leader, tied, ways, source, sink)
        tied = {(find(leader, a), find(leader, b)) for a, b in tied}
        tied = {(a, b) for a, b in tied if a != b}
        moved = {(find(leader, a), find(leader, b), e) for a, b, e in ways}
        ways = {way for way in moved if way[0] != way[1] and way[:2] not in tied}
    return _numbered(tied, ways, source, sink)


def find(leader: list[int], vertex: int) -> int:
    """The vertex that stands for all those merged with `vertex`."""
    while leader[vertex] != vertex:
        leader[vertex] = vertex = leader[leader[vertex]]
    return vertex


def _alive(tied: set[Pair], ways: set[Way], source: int, sink: int) -> tuple[set[Pair], set[Way]]:
    """The edges on a way from the source to the sink: no others are ever cut."""
    onward: dict[int, list[int]] = {}
    back: dict[int, list[int]] = {}
    for a, b, *_ in (*tied, *ways):
        onward.setdefault(a, []).append(b)
        back.setdefault(b, []).append(a)
    used = _reached(onward, source) & _reached(back, sink)
    kept = {pair for pair in tied if pair[0] in used and pair[1] in used}
    return kept, {way for way in ways if way[0] in used and way[1] in used}


def _reached(following: dict[int, list[int]], start: int) -> set[int]:
    seen, queue = {start}, [start]
    for vertex in queue:
        for other in following.get(vertex, ()):
            if other not in seen:
                seen.add(other)
                queue.append(other)
    return seen


def _merge(leader: list[int], tied: set[Pair], ways: set[Way], source: int, sink: int) -> None:
    """Merge what infinite edges tie together; source and sink keep their names."""
    into: dict[int, set[int]] = {}
    out_of: dict[int, set[int]] = {}
    for a, b, *_ in (*tied, *ways):
        into.setdefault(b, set()).add(a)
        out_of.setdefault(a, set()).add(b)
    by_way_in: set[int] = set()
    by_way_out: set[int] = set()
    for a, b in sorted(tied):
        # A vertex is merged by its way in or by its way out: both at once would tie its neighbours to each other.
        only_in = b not in (source, sink) and len(into[b]) == 1 and b not in by_way_out
        only_out = not only_in and a not in (source, sink) and len(out_of[a]) == 1 and a not in by_way_in
        if not (a == source or b == sink or only_in or only_out):
            continue
        by_way_in |= {b} if only_in else set()
        by_way_out |= {a} if only_out else set()
        first, second = find(leader, a), find(leader, b)
        if {first, second} == {source, sink}:
            raise ValueError("no finite cut separates source and sink")
        kept = next((vertex for vertex in (first, second) if vertex in (source, sink)), first)
        leader[first] = leader[second] = kept


def _numbered(tied: Iterable[Pair], ways: Iterable[Way], source: int, sink: int) -> Contracted:
    """The edges as a network, its vertices in the order of the original."""
    names = sorted({source, sink, *(v for pair in tied for v in pair), *(v for way in ways for v in way[:2])})
    place = {vertex: i for i, vertex in enumerate(names)}
    network = FlowNetwork(len(names))
    for a, b in sorted(tied):
        network.add_edge(place[a], place[b], INFINITE)
    numbers: dict[Pair, int] = {}
    edges = {}
    for a, b, e in sorted(ways):
        if (a, b) not in numbers:
            numbers[a, b] = network.add_edge(place[a], place[b], 0)
        edges[e] = numbers[a, b]
    return Contracted(network, place[source], place[sink], edges)
