"""Contracted networks have the minimum cuts of the networks that they were made from."""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fxcompress.solve.contract import contract
from fxcompress.solve.maxflow import INFINITE, FlowNetwork, minimum_cut

Edge = tuple[int, int, int | None]
"""Tail, head, capacity; None for infinite."""


@st.composite
def networks(draw: st.DrawFn) -> tuple[int, list[Edge]]:
    """Source 0, sink 1; every infinite edge leads upwards or to the sink, as in a joint graph, or anywhere."""
    count = draw(st.integers(3, 9))
    vertex = st.integers(0, count - 1)
    capacity = st.one_of(st.none(), st.integers(0, 6))
    return count, draw(st.lists(st.tuples(vertex, vertex, capacity).filter(lambda e: e[0] != e[1]), max_size=22))


def build(count: int, edges: Sequence[Edge]) -> FlowNetwork:
    network = FlowNetwork(count)
    for tail, head, capacity in edges:
        network.add_edge(tail, head, INFINITE if capacity is None else capacity)
    return network


@settings(max_examples=400, deadline=None)
@given(networks(), st.lists(st.integers(1, 9), min_size=22, max_size=22))
def test_the_cut_is_the_same_at_any_capacities(case: tuple[int, list[Edge]], capacities: list[int]) -> None:
    count, edges = case
    priced = [(a, b, None if size is None else new) for (a, b, size), new in zip(edges, capacities, strict=False)]
    whole = build(count, priced)
    try:
        value, near = minimum_cut(whole, 0, 1)
    except ValueError:
        with pytest.raises(ValueError, match="no finite cut"):
            minimum_cut_of(build(count, edges), priced)
        return
    expected = {2 * i for i, (a, b, size) in enumerate(priced) if size is not None and near[a] and not near[b]}
    assert minimum_cut_of(build(count, edges), priced) == (value, expected)


def minimum_cut_of(network: FlowNetwork, priced: Sequence[Edge]) -> tuple[int, set[int]]:
    """The value of the contracted network's cut, and the edges of the original that are in it."""
    small = contract(network, 0, 1)
    for i, (_, _, size) in enumerate(priced):
        if size is not None and 2 * i in small.edges:
            small.network.capacity[small.edges[2 * i]] += size
    value, near = minimum_cut(small.network, small.source, small.sink)
    heads = small.network.heads
    return value, {e for e, own in small.edges.items() if near[heads[own ^ 1]] and not near[heads[own]]}


def test_a_chain_of_free_values_is_one_vertex() -> None:
    """Source -3-> a =inf=> b =inf=> c -2-> sink leaves two edges in a row."""
    small = contract(build(5, [(0, 2, 3), (2, 3, None), (3, 4, None), (4, 1, 2)]), 0, 1)
    assert small.network.vertices == 3 and set(small.edges) == {0, 6}


def test_no_finite_cut_is_refused() -> None:
    with pytest.raises(ValueError, match="no finite cut"):
        contract(build(3, [(0, 2, None), (2, 1, None)]), 0, 1)
