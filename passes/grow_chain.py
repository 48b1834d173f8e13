"""Find the chain of pointwise operators around an encoded tensor, which one kernel can compute from memory to memory.

`grow_chain(source, facts)` follows producers and readers of the tensor as far as every argument is in the chain, in
memory, or a short tensor that repeats along it, and leaves out what only Inductor's own kernels read. Read-only.
"""

import heapq
import operator
from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import fx

from fxcompress.passes.choose import Encoding
from fxcompress.passes.expressions import PREDICATES, expression_of
from fxcompress.passes.find_saved import outputs
from fxcompress.passes.follow import follow
from fxcompress.passes.ops import is_view, op_name
from fxcompress.passes.same_place import is_in_place, lies_as, readers_of, repeats, value_of
from fxcompress.passes.traits import is_opaque
from fxcompress.plan import TRITON


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a forward.

    Attributes:
        order: where nodes stand.
        encodings: what is encoded, with lowerings picked.
        number: by source, which of them.
        returned: values that are the user's.
        kept: values that are saved as they are.
        made, stored: nodes that chains found so far compute, and those of them that they store.
    """

    order: dict[fx.Node, int]
    encodings: tuple[Encoding, ...]
    number: dict[fx.Node, int]
    returned: frozenset[fx.Node]
    kept: frozenset[fx.Node]
    made: set[fx.Node] = field(default_factory=set)
    stored: set[fx.Node] = field(default_factory=set)

    def lowering(self, value: fx.Node) -> str:
        """How `value` is encoded, empty if it is not."""
        return self.encodings[self.number[value]].lowering if value in self.number else ""

    def is_loaded(self, value: fx.Node, reader: fx.Node) -> bool:
        """Whether `reader` has `value` from memory in any case. What is computed and stored, for a library or a mark of
        ours, the same kernel of Inductor's could go on with, unrounded, but not behind a library that reads it."""
        if self.is_given(value):
            return True
        stored = value in self.stored or (value not in self.made and self._is_written(value))
        return stored and self.is_behind_library(reader, value)

    def is_given(self, value: fx.Node) -> bool:
        """Whether the caller or a library made it.

        On a GPU, Inductor adds a convolution's bias in a kernel of its own, and a product's where only pointwise
        operators read the sum.
        """
        maker = value.all_input_nodes[0] if value.target is operator.getitem else value
        if op_name(maker) == "convolution" and maker.args[2] is not None:
            return False
        if op_name(maker) == "addmm" and not (value in self.number or value in self.kept or value in self.returned):
            return any(is_opaque(reader) for reader in readers_of(value))
        return maker.op == "placeholder" or is_opaque(maker)

    def is_behind_library(self, reader: fx.Node, value: fx.Node) -> bool:
        """Whether `reader` needs a library's result that needs `value`."""
        between = follow([reader], lambda node: [a for a in node.all_input_nodes if self.order[a] > self.order[value]])
        reached, calls, behind = {value}, set[fx.Node](), set[fx.Node]()
        for node in sorted(between, key=self.order.__getitem__):
            arguments = node.all_input_nodes
            if not any(argument in reached for argument in arguments):
                continue
            reached.add(node)
            if any(argument in behind or argument in calls for argument in arguments):
                behind.add(node)
            elif is_opaque(node) and not is_view(node):
                calls.add(node)
        return reader in behind

    def _is_written(self, value: fx.Node) -> bool:
        return self.lowering(value) == TRITON or is_read_in_memory(value, self)


def facts_of(fw: fx.GraphModule, encodings: tuple[Encoding, ...], num_fwd_outputs: int) -> Facts:
    """Gather them; no chain is found yet."""
    replaced = {pair.position for encoding in encodings for pair in encoding.storage.members}
    outs = [(i, value_of(out)) for i, out in enumerate(outputs(fw)) if isinstance(out, fx.Node)]
    returned = frozenset(value for i, value in outs if i < num_fwd_outputs)
    kept = frozenset(value for i, value in outs if i >= num_fwd_outputs and i not in replaced)
    order = {node: i for i, node in enumerate(fw.graph.nodes)}
    number = {encoding.source: i for i, encoding in enumerate(encodings)}
    return Facts(order, encodings, number, returned, kept)


def grow_chain(source: fx.Node, facts: Facts) -> set[fx.Node]:
    """The nodes of the chain that computes or reads `source`; empty if there is none."""
    left_out: set[fx.Node] = set()
    while True:
        nodes = _reach(source, left_out, facts)
        ends = _loose_ends(nodes, facts) | _half_read(nodes)
        if not ends:
            return nodes
        left_out |= ends


def short_arguments(node: fx.Node) -> list[fx.Node]:
    """Values that repeat along `node`."""
    return [value_of(argument) for argument in node.all_input_nodes if repeats(argument, node)]


def full_arguments(node: fx.Node) -> list[fx.Node]:
    """The others, which have an element for each of its own."""
    return [value_of(argument) for argument in node.all_input_nodes if not repeats(argument, node)]


def _reach(source: fx.Node, left_out: set[fx.Node], facts: Facts) -> set[fx.Node]:
    nodes: set[fx.Node] = set()
    if not facts.is_given(source) and not _add_producers(source, nodes, facts):
        return set()
    waiting = [(facts.order[reader], reader) for value in nodes or {source} for reader in readers_of(value)]
    heapq.heapify(waiting)
    while waiting:
        at, node = heapq.heappop(waiting)
        if node in nodes or node in left_out or not _computes(node, source, facts):
            continue
        given = [value for value in full_arguments(node) if value not in nodes]
        if not all(_loads(value, node, source, facts) for value in given):
            continue
        # The kernel runs behind its last input, and before anybody else reads what it makes.
        others = (reader for own in nodes for reader in readers_of(own) if reader not in nodes)
        first = min((facts.order[reader] for reader in others if facts.order[reader] < at), default=at)
        if all(facts.order[value] < first for value in (*given, *short_arguments(node))):
            nodes.add(node)
            for reader in readers_of(node):
                heapq.heappush(waiting, (facts.order[reader], reader))
    return nodes


def _add_producers(source: fx.Node, nodes: set[fx.Node], facts: Facts) -> bool:
    """Add what computes `source` from memory; False if something does that a chain has no operator for."""
    waiting = [source]
    while waiting:
        node = waiting.pop()
        if node in nodes:
            continue
        if not _computes(node, source, facts):
            return False
        nodes.add(node)
        given = [value for value in full_arguments(node) if value not in nodes]
        waiting += [value for value in given if not _loads(value, node, source, facts)]
    return True


def _loads(value: fx.Node, reader: fx.Node, source: fx.Node, facts: Facts) -> bool:
    """Whether a chain through `source` can read `value` from memory, where no more than numbers can be read."""
    return not compares(value) and facts.is_loaded(value, reader) and lies_as(value, source)


def _half_read(nodes: set[fx.Node]) -> set[fx.Node]:
    """Conditions that somebody else reads, too: a chain only stores numbers."""
    asked = [node for node in nodes if compares(node) and not is_mask(node)]
    return {node for node in asked if any(reader not in nodes for reader in readers_of(node))}


def _loose_ends(nodes: set[fx.Node], facts: Facts) -> set[fx.Node]:
    """What only Inductor's kernels read, or nobody who could read it from here: computed there, it takes no memory."""
    ends: set[fx.Node] = set()
    for node in sorted(nodes, key=facts.order.__getitem__, reverse=True):
        within = any(reader in nodes and reader not in ends for reader in readers_of(node))
        alone = node in facts.number and not readers_of(node)
        wanted = alone or facts.lowering(node) == TRITON or is_mask(node) or is_read_in_memory(node, facts)
        if not within and not wanted:
            ends.add(node)
    return ends


def is_mask(node: fx.Node) -> bool:
    """Whether a chain's operator makes booleans that are saved and no more, of which it can only make bits."""
    return compares(node) and not readers_of(node)


def compares(node: fx.Node) -> bool:
    """Whether it compares with a number: a mask, or a condition of the same chain."""
    return op_name(node) in PREDICATES


def is_read_in_memory(node: fx.Node, facts: Facts) -> bool:
    """Whether somebody reads it who generates no kernel: a library, the user, a chain."""
    return node in facts.returned or any(is_opaque(reader) or reader in facts.made for reader in readers_of(node))


def _computes(node: fx.Node, source: fx.Node, facts: Facts) -> bool:
    """Whether a chain through `source` has an operator for it: element by element, in the same places of memory."""
    if node in facts.made or expression_of(node, str) is None or not lies_as(node, source) or _joins_product(node):
        return False
    if compares(node) and is_mask(node) != (node in facts.number):
        return False
    return all(repeats(argument, node) or is_in_place(argument, node) for argument in node.all_input_nodes)


def _joins_product(node: fx.Node) -> bool:
    """Whether Inductor may have a library add it to the product that nobody else reads."""
    return op_name(node) == "add" and any(op_name(a) == "mm" and len(a.users) == 1 for a in node.all_input_nodes)


def inputs_of(nodes: Iterable[fx.Node], facts: Facts) -> tuple[list[fx.Node], list[fx.Node]]:
    """What a chain reads, each in the graph's order: tensors of its own size, and short ones."""
    own = set(nodes)
    full = {value for node in own for value in full_arguments(node)} - own
    short = {value for node in own for value in short_arguments(node)} - own
    return sorted(full, key=facts.order.__getitem__), sorted(short, key=facts.order.__getitem__)
