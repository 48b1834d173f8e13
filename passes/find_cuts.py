"""Cut a joint graph into forward and backward by what bytes cost.

Every value that the backward can be computed from is either saved, in the cheapest of its representations, or computed
again from values that are. Splitting each node into an entry and an exit makes the best choice a minimum cut: the edge
between them costs what saving costs, the edge from the source to the entry what computing it again costs.
`build_network` makes the network, whose `cut` solves it exactly for any prices: one for every byte, from "bytes are
free" to "seconds are", or one for each value. Legality is PyTorch's (`compat.recompute_rules`): random operators,
collectives and whatever it must save are never run twice. Read-only.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import fx

from fxcompress import compat
from fxcompress.solve.contract import Contracted, contract
from fxcompress.solve.maxflow import INFINITE, FlowNetwork, minimum_cut

SOURCE, SINK = 0, 1
_RESOLUTION = 1 << 44
"""The dearest single choice in integer units: others down to a 10⁻¹³th of it still count."""


@dataclass(frozen=True, slots=True)
class Way:
    """One way to save a value: what it costs in seconds of step time, and in bytes held.

    If it is encoded, `working_nbytes` are what the encode and the decode take besides.
    """

    seconds: float
    nbytes: int
    working_nbytes: tuple[int, int] | None = None


Ways = Mapping[fx.Node, tuple[Way, ...]]
"""Per value the ways to save it; a value without an entry, or without a way, is never saved."""


@dataclass(frozen=True, slots=True)
class CutNetwork:
    """The network of one joint graph, for any number of cuts.

    `saving` and `recomputing` number the edges that stand for it, per value that may be saved or computed again.
    """

    contracted: Contracted
    ways: Ways
    recompute_s: Mapping[fx.Node, float]
    saving: dict[fx.Node, int]
    recomputing: dict[fx.Node, int]

    def cut(
        self, cost: Callable[[fx.Node, Way], float], again_s: Callable[[fx.Node], float] = lambda node: 0.0
    ) -> list[fx.Node]:
        """The cheapest values to save, in the order of the graph.

        Args:
            cost: of saving a value in one of its ways, in seconds, what bytes are worth included.
            again_s: of computing a value again, beyond the time that it takes.

        Raises:
            ValueError: no set of saved values is legal.
        """
        costs = {node: min(cost(node, way) for way in self.ways[node]) for node in self.saving}
        again = {node: self.recompute_s.get(node, 0.0) + again_s(node) for node in self.recomputing}
        unit = max([*costs.values(), *again.values(), 1e-30]) / _RESOLUTION
        network = self.contracted.network
        capacity = dict.fromkeys((*self.saving.values(), *self.recomputing.values()), 0)
        for node, number in self.saving.items():
            # Among equal costs the cut nearest the source is found: prefer few values over many.
            capacity[number] += round(costs[node] / unit) + 1
        for node, number in self.recomputing.items():
            capacity[number] += round(again[node] / unit)
        for number, units in capacity.items():
            network.capacity[number] = units
        _, near = minimum_cut(network, self.contracted.source, self.contracted.sink)
        return [node for node, number in self.saving.items() if _is_cut(network, number, near)]


def build_network(
    joint: fx.Graph, info: compat.NodeInfo, ways: Ways, recompute_s: Mapping[fx.Node, float]
) -> CutNetwork:
    """Build the network.

    Args:
        joint: the joint graph.
        info: PyTorch's classification of its nodes.
        ways: how each value could be saved.
        recompute_s: seconds to compute a value once more; what has no entry is free.
    """
    nodes = [node for node in joint.nodes if node.op != "output"]
    entry = {node: 2 * i + 2 for i, node in enumerate(nodes)}
    network = FlowNetwork(2 * len(nodes) + 2)
    saving: dict[int, fx.Node] = {}
    recomputing: dict[int, fx.Node] = {}
    rules = compat.recompute_rules(joint, info)
    for node in nodes:
        if node in rules.backward or node in rules.forced:
            network.add_edge(entry[node], SINK, INFINITE)
            continue
        if node in rules.wanted:
            network.add_edge(entry[node] + 1, SINK, INFINITE)
        if node in rules.fixed:
            network.add_edge(SOURCE, entry[node], INFINITE)
        elif recompute_s.get(node, 0.0) > 0 and info.is_required_fw(node):
            recomputing[network.add_edge(SOURCE, entry[node], 0)] = node
        number = network.add_edge(entry[node], entry[node] + 1, 0 if ways.get(node) else INFINITE)
        if ways.get(node):
            saving[number] = node
        for user in node.users:
            if user.op != "output":
                network.add_edge(entry[node] + 1, entry[user], INFINITE)
    small = contract(network, SOURCE, SINK)
    return CutNetwork(
        small,
        ways,
        recompute_s,
        {node: small.edges[number] for number, node in saving.items() if number in small.edges},
        {node: small.edges[number] for number, node in recomputing.items() if number in small.edges},
    )


def _is_cut(network: FlowNetwork, number: int, near: list[bool]) -> bool:
    return near[network.heads[number ^ 1]] and not near[network.heads[number]]


def tensor_of(node: fx.Node) -> torch.Tensor | None:
    """The fake tensor of a node that has one value with a dense layout."""
    val = node.meta.get("val")
    return val if isinstance(val, torch.Tensor) and val.layout is torch.strided else None
