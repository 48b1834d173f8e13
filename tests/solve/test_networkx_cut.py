"""Our solver in networkx's place: the same cut of random graphs."""

import math

import networkx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fxcompress.solve.networkx_cut import networkx_cut

CAPACITIES = st.sampled_from([0, 1, 1, 2, 3.0, 7, math.inf])


@given(st.dictionaries(st.tuples(st.integers(0, 8), st.integers(0, 8)), CAPACITIES, max_size=30))
def test_the_same_cut_as_networkx(edges: dict[tuple[int, int], float]) -> None:
    graph = networkx.DiGraph()
    graph.add_nodes_from([0, 8])
    for (tail, head), capacity in edges.items():
        graph.add_edge(tail, head, capacity=capacity)
    try:
        want = networkx.minimum_cut(graph, 0, 8)
    except networkx.NetworkXUnbounded:
        with pytest.raises(ValueError, match="no finite cut"):
            networkx_cut(graph, 0, 8)
        return
    assert networkx_cut(graph, 0, 8) == want


def test_fractions_are_refused() -> None:
    graph = networkx.DiGraph()
    graph.add_edge("s", "t", capacity=0.5)
    with pytest.raises(ValueError, match="no whole number"):
        networkx_cut(graph, "s", "t")
