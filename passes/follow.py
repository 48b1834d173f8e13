"""Follow the edges of a graph from node to node: each is met once, however many ways lead to it, and none too deep.

`follow` goes from nodes as far as it is told, `ancestors` back to all that they are computed from; `joined` hands sets
on from operands to results where a pass sweeps the graph in its order. Read-only.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeVar

from torch import fx

T = TypeVar("T")


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


def joined(held: Mapping[fx.Node, frozenset[T]], nodes: Iterable[fx.Node]) -> frozenset[T]:
    """What the sets of `nodes` hold together; without one, a node holds nothing.

    Where one of them holds it all, it is that set itself: along a chain, no node has a copy of its own.
    """
    found: frozenset[T] = frozenset()
    for node in nodes:
        own = held.get(node, found)
        if not own <= found:
            found = own if found <= own else found | own
    return found
