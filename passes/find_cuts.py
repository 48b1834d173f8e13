"""Cut a joint graph into forward and backward by the price of a byte.

Every value that the backward can be computed from is either saved, in the cheapest of its representations, or computed
again from values that are. Splitting each node into an entry and an exit makes the best choice a minimum cut: the edge
between them costs what saving costs, the edge from the source to the entry what computing it again costs. `find_cuts`
solves it exactly for each price of a byte, from "bytes are free" to "seconds are". Legality is PyTorch's
(`compat.recompute_rules`): random operators, collectives and whatever it must save are never run twice. Read-only.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import fx

from fxcompress import compat
from fxcompress.solve.maxflow import INFINITE, FlowNetwork, minimum_cut

SOURCE, SINK = 0, 1
_RESOLUTION = 1 << 44
"""The dearest single choice in integer units: others down to a 10⁻¹³th of it still count."""


@dataclass(frozen=True, slots=True)
class Way:
    """One way to save a value: what it costs in seconds of step time, and in bytes held."""

    seconds: float
    nbytes: int


Ways = Mapping[fx.Node, tuple[Way, ...]]
"""Per value the ways to save it; a value without an entry, or without a way, is never saved."""


@dataclass(frozen=True, slots=True)
class _Edges:
    """The network, and for each node that may be saved the number of the edge which does it."""

    network: FlowNetwork
    saving: dict[fx.Node, int]
    recomputing: dict[fx.Node, int]


def find_cuts(
    joint: fx.Graph,
    info: compat.NodeInfo,
    ways: Ways,
    recompute_s: Mapping[fx.Node, float],
    prices: Sequence[float],
) -> list[list[fx.Node]]:
    """The values to save at each price, in the order of the graph.

    Args:
        joint: the joint graph.
        info: PyTorch's classification of its nodes.
        ways: how each value could be saved.
        recompute_s: seconds to compute a value once more; what has no entry is free.
        prices: seconds per byte, one cut each.

    Raises:
        ValueError: no set of saved values is legal.
    """
    edges = _build(joint, info, ways, recompute_s)
    cuts = []
    for price in prices:
        costs = {node: min(way.seconds + price * way.nbytes for way in ways[node]) for node in edges.saving}
        again = {node: recompute_s.get(node, 0.0) for node in edges.recomputing}
        unit = max([*costs.values(), *again.values(), 1e-30]) / _RESOLUTION
        for node, number in edges.saving.items():
            # Among equal costs the cut nearest the source is found: prefer few values over many.
            edges.network.capacity[number] = round(costs[node] / unit) + 1
        for node, number in edges.recomputing.items():
            edges.network.capacity[number] = round(again[node] / unit)
        _, near = minimum_cut(edges.network, SOURCE, SINK)
        cuts.append([node for node, number in edges.saving.items() if _is_cut(edges.network, number, near)])
    return cuts


def _is_cut(network: FlowNetwork, number: int, near: list[bool]) -> bool:
    return near[network.heads[number ^ 1]] and not near[network.heads[number]]


def _build(joint: fx.Graph, info: compat.NodeInfo, ways: Ways, recompute_s: Mapping[fx.Node, float]) -> _Edges:
    nodes = [node for node in joint.nodes if node.op != "output"]
    entry = {node: 2 * i + 2 for i, node in enumerate(nodes)}
    edges = _Edges(FlowNetwork(2 * len(nodes) + 2), {}, {})
    rules = compat.recompute_rules(joint, info)
    for node in nodes:
        if node in rules.backward or node in rules.forced:
            edges.network.add_edge(entry[node], SINK, INFINITE)
            continue
        if node in rules.wanted:
            edges.network.add_edge(entry[node] + 1, SINK, INFINITE)
        if node in rules.fixed:
            edges.network.add_edge(SOURCE, entry[node], INFINITE)
        elif recompute_s.get(node, 0.0) > 0 and info.is_required_fw(node):
            edges.recomputing[node] = edges.network.add_edge(SOURCE, entry[node], 0)
        number = edges.network.add_edge(entry[node], entry[node] + 1, INFINITE)
        if ways.get(node):
            edges.saving[node] = number
        for user in node.users:
            if user.op != "output":
                edges.network.add_edge(entry[node] + 1, entry[user], INFINITE)
    return edges


def tensor_of(node: fx.Node) -> torch.Tensor | None:
    """The fake tensor of a node that has one value with a dense layout."""
    val = node.meta.get("val")
    return val if isinstance(val, torch.Tensor) and val.layout is torch.strided else None
