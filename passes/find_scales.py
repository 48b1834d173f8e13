"""Tell exponentials that scale gradients: those of a flow's log-scales, of a logarithm of a deviation or a temperature.

An error of the argument is one of the exponential by a factor, however large the argument's range, as of a softmax's.
Not those that are 1 at most: of what is never positive, as a decay's exponent, or chosen where it is negative, as an
ELU's; and not those that are divided by their own sum with a constant, as a softplus's. Read-only.
"""

from collections.abc import Set

from torch import fx

from fxcompress.passes.find_signs import Signs, find_signs
from fxcompress.passes.follow import follow
from fxcompress.passes.ops import MOVES, op_name

_EXPONENTIALS = frozenset(["exp", "exp2"])
_CARRIES = MOVES | frozenset(["mul", "neg"])


def find_scales(bw: fx.GraphModule, gradients: Set[fx.Node]) -> set[fx.Node]:
    """Exponentials that gradients are multiplied with, moved, turned or scaled at most.

    Args:
        bw: backward graph.
        gradients: its nodes that depend on a tangent.
    """
    taken = [node for node in bw.graph.nodes if op_name(node) in _EXPONENTIALS and node not in gradients]
    if not taken:
        return set()
    falling = _nonpositive(bw.graph)
    return {node for node in taken if node.args[0] not in falling and _scales(node, gradients)}


def _scales(node: fx.Node, gradients: Set[fx.Node]) -> bool:
    def further(value: fx.Node) -> list[fx.Node]:
        return [user for user in value.users if op_name(user) in _CARRIES and user not in gradients]

    scales = False
    for value in follow([node], further):
        for user in value.users:
            name = op_name(user)
            if name == "add" and user not in gradients and len(user.all_input_nodes) == 1:
                return False
            if name in ("mul", "div") and user in gradients:
                scales = scales or not all(op_name(reader) == "where" for reader in user.users)
    return scales


def _nonpositive(graph: fx.Graph) -> set[fx.Node]:
    """Values of which no element is positive, whatever the values they are computed from."""
    signs, found = find_signs(graph), set[fx.Node]()
    for node in graph.nodes:
        if node.op == "call_function" and _is_nonpositive(node, found, signs):
            found.add(node)
    return found


def _is_nonpositive(node: fx.Node, found: set[fx.Node], signs: Signs) -> bool:
    name, args = op_name(node), node.args
    if name == "neg":
        return _is_nonnegative(args[0], signs)
    if name in ("mul", "div"):
        pairs = (args[:2], args[1::-1])
        return any(_falls(one, found) and _is_nonnegative(other, signs) for one, other in pairs)
    return name in MOVES and found.issuperset(node.all_input_nodes)


def _falls(arg: object, found: Set[fx.Node]) -> bool:
    return arg in found if isinstance(arg, fx.Node) else isinstance(arg, (int, float)) and arg <= 0


def _is_nonnegative(arg: object, signs: Signs) -> bool:
    while isinstance(arg, fx.Node) and op_name(arg) in MOVES and len(arg.all_input_nodes) == 1:
        arg = arg.all_input_nodes[0]
    return signs.is_nonnegative(arg) or (isinstance(arg, fx.Node) and _is_softplus(arg, signs))


def _is_softplus(node: fx.Node, signs: Signs) -> bool:
    """Taken apart: `where(x > 20, x, log1p(exp(x)))`."""
    chosen = node.args[2] if op_name(node) == "where" else node
    if not isinstance(chosen, fx.Node) or op_name(chosen) not in ("log1p", "div"):
        return False
    logarithm = chosen.all_input_nodes[0] if op_name(chosen) == "div" else chosen
    return op_name(logarithm) == "log1p" and signs.is_nonnegative(logarithm.all_input_nodes[0])
