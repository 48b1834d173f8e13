"""Compute what only the backward reads as soon as that lets something go.

A cut may save what PyTorch computes at the start of the backward, such as `x - mean` of a normalization. Extracted, it
runs behind the whole forward, and what it reads waits for it, or, on a compiler that fuses, it waits itself for its
encode, which runs where the graph says. `save_early` moves it; `place_early` says where to, which estimates of cuts
need too. Exact: only the order changes.
"""

import itertools
import operator
from collections.abc import Mapping, Sequence, Set

from torch import fx

from fxcompress.compat import OpOverload
from fxcompress.passes.find_saved import outputs
from fxcompress.passes.follow import ancestors
from fxcompress.passes.joint_outputs import is_mutating
from fxcompress.passes.ops import GRADIENT, base_of, is_random, is_view
from fxcompress.passes.splice import PREFIX
from fxcompress.passes.traits import buffers_of

_PACKED = 8
"""What is saved may be encoded, seldom in less than this part of its bytes."""


def save_early(fw: fx.GraphModule, num_fwd_outputs: int) -> tuple[str, ...]:
    """Move what no user output needs to where its operands are read for the last time; returns the names of what moved.

    Args:
        fw: the forward, edited in place. What stands behind the first write into an operand stays.
        num_fwd_outputs: how many of its outputs are the user's.
    """
    nodes = [node for node in fw.graph.nodes if node.op not in ("placeholder", "output")]
    written = next((i for i, node in enumerate(nodes) if is_mutating(node)), len(nodes))
    returned = [item for item in outputs(fw) if isinstance(item, fx.Node)]
    wanted = [item for item in outputs(fw)[:num_fwd_outputs] if isinstance(item, fx.Node)]
    needed = ancestors(*wanted, *nodes[written:], *(node for node in nodes if not may_move(node)))
    placed = place_early(nodes, {node for node in nodes if node not in needed}, returned)
    moved = []
    for before, node in itertools.pairwise(placed):
        if node.prev is not before:
            before.append(node)
            moved.append(node.name)
    return tuple(moved)


def place_early(nodes: Sequence[fx.Node], late: Set[fx.Node], returned: Sequence[fx.Node]) -> list[fx.Node]:
    """`nodes` in the same order, but for `late`: those that a returned one needs go with it.

    It goes behind the last other reader of operands that hold as much as it may take, encoded; right behind its
    operands where it lets none go; and stays where it reads inputs of the graph alone, and where we placed it.

    Args:
        nodes: in an order that can be run.
        late: what may run earlier.
        returned: what outlives the nodes.
    """
    if not late:
        return list(nodes)
    order, kept = {node: i for i, node in enumerate(nodes)}, frozenset(returned)
    behind: dict[fx.Node, int] = {}
    for target in sorted(late & kept, key=order.__getitem__):
        if target in behind or target.meta.get("actcomp") == GRADIENT or target.name.startswith(PREFIX):
            continue
        parts, operands = _chain(target, late, behind)
        ready = [behind[node] if node in behind else order[node] for node in operands if node in order]
        if ready:
            place = max(max(ready), _release(target, operands, late, order, kept))
            behind.update(dict.fromkeys(parts, min(place, order[target])))
    return sorted(nodes, key=lambda node: (behind.get(node, order[node]), node in behind, order[node]))


def may_move(node: fx.Node) -> bool:
    """Whether nothing but its result tells that it ran."""
    if node.target is operator.getitem:
        return True
    plain = isinstance(node.target, OpOverload) and node.target.namespace in ("aten", "prims")
    return plain and not is_random(node)


def _chain(target: fx.Node, late: Set[fx.Node], placed: Mapping[fx.Node, int]) -> tuple[set[fx.Node], set[fx.Node]]:
    """The late nodes that must run for it, itself included, and what they read."""
    parts, operands = {target}, set[fx.Node]()
    stack = [target]
    while stack:
        for arg in stack.pop().all_input_nodes:
            if arg not in late or arg in placed:
                operands.add(arg)
            elif arg not in parts:
                parts.add(arg)
                stack.append(arg)
    return parts, operands


def _release(
    target: fx.Node, operands: Set[fx.Node], late: Set[fx.Node], order: Mapping[fx.Node, int], returned: Set[fx.Node]
) -> int:
    """From where on operands wait for nothing but `target` that hold as much as it may take; -1 if none do."""
    held: dict[fx.Node, int] = {}
    for node in operands:
        root = base_of(node)
        if root in order:
            held[root] = max(held.get(root, 0), _nbytes(node))
    last = {root: _last_reader(root, late, order, returned) for root in held}
    room = _nbytes(target) / _PACKED
    for root, place in sorted(last.items(), key=lambda item: (item[1], order[item[0]])):
        room -= held[root]
        if room <= 0:
            return place if place < len(order) else -1
    return -1


def _nbytes(node: fx.Node) -> int:
    return sum(size for _, size in buffers_of(node))


def _last_reader(root: fx.Node, late: Set[fx.Node], order: Mapping[fx.Node, int], returned: Set[fx.Node]) -> int:
    """Where the last node stands that is not late and reads it or a view of it; behind all if it outlives them."""
    family, last = [root], -1
    for node in family:
        if node in returned:
            return len(order)
        last = max(last, order[node])
        readers = [user for user in node.users if user in order and user not in late]
        family += filter(is_view, readers)
        last = max((last, *(order[user] for user in readers)))
    return last
