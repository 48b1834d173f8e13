"""The two halves of a training step as sequences of nodes, of a pair of graphs or of a joint graph cut anywhere.

A `Phase` is what the memory model needs of a graph: the nodes in the order they run, what is given, what is returned.
`phase_of(gm)` reads one off a graph; `cut_phases(joint, saved, …)` reads both off a joint graph and a set of values to
save, as PyTorch's partitioner would extract and order them, without building a graph. Read-only.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from torch import fx

from fxcompress import compat
from fxcompress.passes.find_saved import is_tangent, outputs, placeholders
from fxcompress.passes.save_early import may_move, place_early
from fxcompress.passes.traits import Traits, traits_of

Known = dict[fx.Node, Traits]
"""Traits of the nodes of a graph, as far as they were asked for."""


@dataclass(frozen=True, slots=True)
class Phase:
    """Nodes that run in this order, given the values of `inputs`; `returned` outlive it.

    `members` holds the nodes that run; users of a node outside of it are another phase's.
    """

    nodes: tuple[fx.Node, ...]
    inputs: tuple[fx.Node, ...]
    returned: tuple[fx.Node, ...]
    members: frozenset[fx.Node]
    leaving: frozenset[fx.Node]
    """`returned` as a set."""
    known: Known = field(default_factory=dict, compare=False, repr=False)
    stored: frozenset[fx.Node] = frozenset()
    """What is written to memory although its readers could compute it."""

    def traits(self, node: fx.Node) -> Traits:
        """Its traits, which all phases of a graph share."""
        found = self.known.get(node)
        if found is None:
            found = self.known[node] = traits_of(node)
        return found

    def users(self, node: fx.Node) -> list[fx.Node]:
        """The nodes of this phase that read `node`."""
        return [user for user in node.users if user in self.members]


def make_phase(
    nodes: Iterable[fx.Node],
    inputs: Iterable[fx.Node],
    returned: Iterable[object],
    known: Known | None = None,
    stored: frozenset[fx.Node] = frozenset(),
) -> Phase:
    ran, left = tuple(nodes), tuple(item for item in returned if isinstance(item, fx.Node))
    return Phase(ran, tuple(inputs), left, frozenset(ran), frozenset(left), {} if known is None else known, stored)


def phase_of(gm: fx.GraphModule) -> Phase:
    """One whole graph."""
    nodes = [node for node in gm.graph.nodes if node.op not in ("placeholder", "output")]
    stored = frozenset(filter(compat.is_stored, nodes))
    return make_phase(nodes, placeholders(gm), outputs(gm), stored=stored)


def cut_phases(
    joint: fx.Graph,
    saved: Sequence[fx.Node],
    num_fwd_outputs: int,
    traits: Known | None = None,
    stored: frozenset[fx.Node] = frozenset(),
) -> tuple[Phase, Phase]:
    """The forward and the backward that a joint graph falls into if exactly `saved` is handed over.

    The forward runs what only `saved` needs as soon as that lets something go (`save_early`). The backward runs its
    nodes in the joint graph's order, each recomputed value right before what first needs it
    (`reordering_to_mimic_autograd_engine`).

    Args:
        joint: the graph, its outputs the user's first and then the gradients.
        saved: the values to hand over; inputs of the graph may be among them, and are at hand in any case.
        num_fwd_outputs: how many outputs are the user's.
        traits: of the graph's nodes, where several cuts of it are looked at.
        stored: what is written to memory although its readers could compute it.
    """
    (end,) = joint.find_nodes(op="output")
    results = [item if isinstance(item, fx.Node) else None for item in end.args[0]]
    given = dict.fromkeys(joint.find_nodes(op="placeholder"))
    user, gradients = results[:num_fwd_outputs], results[num_fwd_outputs:]
    order = {node: i for i, node in enumerate(joint.nodes)}
    needed = _needed(user, given.__contains__)
    late = _needed(saved, lambda node: node in given or node in needed)
    known = dict.fromkeys([*given, *saved])
    backward = _needed(gradients, known.__contains__)
    held = [node for node in given if is_forward_input(node)]
    shared: Known = {} if traits is None else traits
    left = [*(item for item in user if item is not None), *saved]
    forward = place_early(sorted(needed | late, key=order.__getitem__), set(filter(may_move, late)), left)
    before = make_phase(forward, held, left, shared, stored)
    return before, make_phase(_lazily(backward, order), known, gradients, shared, stored)


def _needed(targets: Iterable[fx.Node | None], known: Callable[[fx.Node], bool]) -> set[fx.Node]:
    """Nodes that must run to get `targets` from what is `known`."""
    found: set[fx.Node] = set()
    stack = [node for node in targets if node is not None]
    while stack:
        node = stack.pop()
        if node in found or known(node):
            continue
        found.add(node)
        stack.extend(node.all_input_nodes)
    return found


def _lazily(backward: set[fx.Node], order: dict[fx.Node, int]) -> list[fx.Node]:
    """The backward's nodes from the first reader of a tangent on, what they need besides right before them."""
    placed: dict[fx.Node, None] = {}
    ordered = sorted(backward, key=order.__getitem__)
    start = next((i for i, node in enumerate(ordered) if any(map(is_tangent, node.all_input_nodes))), 0)
    for node in ordered[start:] + ordered[:start]:
        if all(item in placed or item not in backward for item in node.all_input_nodes):
            placed[node] = None
            continue
        missing = _needed([node], lambda item: item in placed or item not in backward)
        placed.update(dict.fromkeys(sorted(missing, key=order.__getitem__)))
    return list(placed)


def is_forward_input(node: fx.Node) -> bool:
    """Whether the forward is given it, and not the backward alone, as what gradients start from is."""
    return node.op == "placeholder" and not is_tangent(node)
