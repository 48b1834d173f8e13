"""Find arguments of activations that are linear on one side: GELU, SiLU, Mish; others by name.

Their slope is about 1 where most of a gradient passes, and an error of the argument is a small one of it; a slope of a
sigmoid or a tanh is small on both sides, and of a saturated one an error is all there is. Read-only.
"""

from collections.abc import Callable, Iterable, Iterator, Set

from torch import fx

from fxcompress.passes.ops import MOVES, is_square, op_name

_BENT = frozenset(["erf", "exp", "sigmoid", "tanh"])
_SLOPES = frozenset(f"{name}_backward" for name in "elu gelu hardswish log_sigmoid mish silu softplus".split())
_STEPS = 8
"""Operators between an argument and what bends it, and from there to the product of both, at most."""


def find_ramps(bw: fx.GraphModule, gradients: Set[fx.Node]) -> set[fx.Node]:
    """Values of the backward, none of `gradients`, that are multiplied with a bent function of themselves.

    That is what such a slope is made of, taken apart; where it is one operator, its argument. The slopes of ELU and
    softplus, taken apart, are no such products, and are not found.
    """
    found: set[fx.Node] = set()
    for node in bw.graph.nodes:
        name = op_name(node)
        if name in _SLOPES:
            found |= {arg for arg in node.all_input_nodes if arg not in gradients}
        elif name in _BENT and node not in gradients:
            arguments = set(_near(node, lambda value: [arg for arg in value.all_input_nodes if not _is_bent(arg)]))
            for value in _near(node, lambda value: [user for user in value.users if user not in gradients]):
                if op_name(value) == "mul":
                    found |= arguments.intersection(map(_unscaled, value.all_input_nodes))
    return found


def _is_bent(node: fx.Node) -> bool:
    return op_name(node) in _BENT


def _near(node: fx.Node, beside: Callable[[fx.Node], Iterable[fx.Node]]) -> Iterator[fx.Node]:
    """What is reached from `node` in a few steps."""
    seen, last = {node}, [node]
    for _ in range(_STEPS):
        last = list(dict.fromkeys(other for value in last for other in beside(value) if other not in seen))
        seen.update(last)
        yield from last


def _unscaled(node: fx.Node) -> fx.Node:
    """What `node` is a multiple of by a number, or moved from."""
    while (op_name(node) in MOVES or op_name(node) == "mul") and len(node.all_input_nodes) == 1 and not is_square(node):
        node = node.all_input_nodes[0]
    return node
