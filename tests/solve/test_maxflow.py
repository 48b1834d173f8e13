"""Minimum cuts against networkx, and by what a cut is."""

import networkx as nx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fxcompress.solve.maxflow import INFINITE, FlowNetwork, minimum_cut

Edges = list[tuple[int, int, int]]


@st.composite
def networks(draw: st.DrawFn) -> tuple[int, Edges]:
    count = draw(st.integers(2, 12))
    vertex = st.integers(0, count - 1)
    capacity = st.one_of(st.integers(0, 5), st.integers(0, 1 << 50))
    return count, draw(st.lists(st.tuples(vertex, vertex, capacity), max_size=40))


def build(count: int, edges: Edges) -> FlowNetwork:
    network = FlowNetwork(count)
    for tail, head, capacity in edges:
        network.add_edge(tail, head, capacity)
    return network


@settings(deadline=None, max_examples=150, derandomize=True)
@given(networks())
def test_value_is_that_of_networkx_and_of_the_cut_returned(case: tuple[int, Edges]) -> None:
    count, edges = case
    graph = nx.DiGraph()
    graph.add_nodes_from(range(count))
    for tail, head, capacity in edges:
        if tail != head:
            known = graph.get_edge_data(tail, head, {"capacity": 0})["capacity"]
            graph.add_edge(tail, head, capacity=known + capacity)
    value, near = minimum_cut(build(count, edges), 0, 1)
    assert value == nx.maximum_flow_value(graph, 0, 1)
    assert near[0] and not near[1]
    assert value == sum(capacity for tail, head, capacity in edges if near[tail] and not near[head])


def test_the_network_can_be_cut_again_with_other_capacities() -> None:
    network = FlowNetwork(3)
    first, second = network.add_edge(0, 2, 5), network.add_edge(2, 1, 3)
    assert minimum_cut(network, 0, 1) == (3, [True, False, True])
    network.capacity[first], network.capacity[second] = 2, 4
    assert minimum_cut(network, 0, 1) == (2, [True, False, False])


def test_among_equal_cuts_the_one_nearest_the_source_is_taken() -> None:
    assert minimum_cut(build(3, [(0, 2, 4), (2, 1, 4)]), 0, 1) == (4, [True, False, False])


def test_an_infinite_edge_is_never_cut() -> None:
    edges = [(0, 2, INFINITE), (2, 1, 7), (2, 3, 2), (3, 1, INFINITE)]
    assert minimum_cut(build(4, edges), 0, 1) == (9, [True, False, True, False])
    with pytest.raises(ValueError, match="no finite cut"):
        minimum_cut(build(3, [(0, 2, INFINITE), (2, 1, INFINITE)]), 0, 1)


def test_vertices_without_a_way_are_far() -> None:
    assert minimum_cut(FlowNetwork(3), 0, 1) == (0, [True, False, False])
