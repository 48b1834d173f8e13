"""Tell exponentials that scale gradients: those of a flow's log-scales, of a logarithm of a deviation or a temperature.

An error of the argument is one of the exponential by a factor, however large the argument's range, as of a softmax's.
Not those that are 1 at most: of what is never positive, as a decay's exponent, or chosen where it is negative, as an
ELU's; and not those that are divided by their own sum with a constant, as a softplus's. Read-only.
"""

from collections.abc import Set

from torch import fx

from fxcompress.passes.find_hazards import is_nonnegative
from fxcompress.passes.ops import MOVES, op_name

_EXPONENTIALS = frozenset(["exp", "exp2"])
_CARRIES = MOVES | frozenset(["mul", "neg"])
_DEPTH = 24


def is_scale(node: fx.Node, gradients: Set[fx.Node]) -> bool:
    """Whether `node` is an exponential that gradients are multiplied with, moved, turned or scaled at most.

    `gradients` are the nodes that depend on a tangent.
    """
    if op_name(node) not in _EXPONENTIALS or _is_nonpositive(node.args[0]):
        return False
    values, scales = [node], False
    for value in values:
        for user in value.users:
            name = op_name(user)
            if name == "add" and user not in gradients and len(user.all_input_nodes) == 1:
                return False
            if name in ("mul", "div") and user in gradients:
                scales = scales or not all(op_name(reader) == "where" for reader in user.users)
            elif name in _CARRIES and user not in gradients and user not in values:
                values.append(user)
    return scales


def _is_nonpositive(arg: object, depth: int = 0) -> bool:
    """Whether no element is positive, whatever the values they are computed from."""
    if not isinstance(arg, fx.Node):
        return isinstance(arg, (int, float)) and arg <= 0
    name, args = op_name(arg), arg.args
    if depth > _DEPTH or arg.op != "call_function":
        return False
    if name == "neg":
        return _is_nonnegative(args[0])
    if name in ("mul", "div"):
        pairs = (args[:2], args[1::-1])
        return any(_is_nonpositive(one, depth + 1) and _is_nonnegative(other) for one, other in pairs)
    return name in MOVES and all(_is_nonpositive(inner, depth + 1) for inner in arg.all_input_nodes)


def _is_nonnegative(arg: object) -> bool:
    if not isinstance(arg, fx.Node):
        return isinstance(arg, (int, float)) and arg >= 0
    if op_name(arg) in MOVES and len(arg.all_input_nodes) == 1:
        return _is_nonnegative(arg.all_input_nodes[0])
    return is_nonnegative(arg) or _is_softplus(arg)


def _is_softplus(node: fx.Node) -> bool:
    """Taken apart: `where(x > 20, x, log1p(exp(x)))`."""
    chosen = node.args[2] if op_name(node) == "where" else node
    if not isinstance(chosen, fx.Node) or op_name(chosen) not in ("log1p", "div"):
        return False
    logarithm = chosen.all_input_nodes[0] if op_name(chosen) == "div" else chosen
    return op_name(logarithm) == "log1p" and is_nonnegative(logarithm.all_input_nodes[0])
