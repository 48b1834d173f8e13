"""Which saved tensors hold given values of the forward, or are what the backward rebuilds them from. Read-only."""

from collections.abc import Iterable, Set

from torch import fx

from fxcompress.passes.find_saved import SavedPair
from fxcompress.passes.follow import joined


def rebuilt_from(
    bw: fx.GraphModule,
    pairs: Iterable[SavedPair],
    sources: Set[fx.Node],
    gradients: Set[fx.Node],
    values: Set[fx.Node],
) -> set[str]:
    """Names of those of `sources`, placeholders of the backward, that `values`, forward nodes, are had from.

    A partitioner copies what it recomputes under its name.
    """
    if not values:
        return set()
    names = {value.name for value in values}
    found = {pair.bw.name for pair in pairs if pair.bw in sources and pair.fw in values}
    behind = {node: frozenset([node.name]) for node in sources}
    for node in bw.graph.nodes:
        if node.op == "call_function" and node not in gradients:
            behind[node] = joined(behind, node.all_input_nodes)
            if node.name in names:
                found |= behind[node]
    return found
