"""Follow the edges of a graph from node to node: each is met once, however many ways lead to it, and none too deep."""

from collections.abc import Callable, Iterable, Iterator

from torch import fx


def follow(starts: Iterable[fx.Node], further: Callable[[fx.Node], Iterable[fx.Node]]) -> Iterator[fx.Node]:
    """`starts`, and what `further` leads to from each node met, the nearest first."""
    met = dict.fromkeys(starts)
    waiting = [*met]
    for node in waiting:
        yield node
        for other in further(node):
            if other not in met:
                met[other] = None
                waiting.append(other)


def ancestors(*nodes: fx.Node) -> set[fx.Node]:
    """`nodes`, and all that they are computed from."""
    return set(follow(nodes, lambda node: node.all_input_nodes))
