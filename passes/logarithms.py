"""Recognize softmaxes and log-sum-exps in a backward, whole or taken apart: exponentials of an argument less a norm.

A norm is the logarithm of a row's sum of exponentials, or the row's maximum. Read-only.
"""

import operator
from collections.abc import Iterable, Set

from torch import fx

from fxcompress.passes.find_saved import SavedPair
from fxcompress.passes.ops import MOVES, op_name


def saved_norms(pairs: Iterable[SavedPair]) -> set[fx.Node]:
    """Placeholders of the backward that hold norms."""
    return {pair.bw for pair in pairs if _is_log_sum(unmoved(pair.fw)) or _is_maximum(unmoved(pair.fw))}


def is_logarithm(node: fx.Node, norms: Set[fx.Node]) -> bool:
    """Whether `node` is the logarithm of a softmax's numerator or result: an argument less its row's maximum or its
    log-sum-exp, saved (`norms`) or rebuilt. An error of the argument is one of the exponential by a factor."""
    taken = [unmoved(arg) for arg in node.all_input_nodes] if op_name(node) == "sub" else []
    return any(arg in norms or _is_maximum(arg) for arg in taken)


def is_softmax(node: fx.Node) -> bool:
    """A softmax's result, also taken apart: an exponential divided by its own sum."""
    if op_name(node) not in ("div", "true_divide"):
        return op_name(node) in ("_softmax", "_safe_softmax", "softmax")
    parts = [unmoved(arg) for arg in node.args[:2] if isinstance(arg, fx.Node)]
    if len(parts) < 2 or op_name(parts[0]) != "exp" or op_name(parts[1]) != "sum":
        return False
    return any(unmoved(arg) is parts[0] for arg in parts[1].all_input_nodes)


def _is_maximum(node: fx.Node) -> bool:
    """The maximum of rows."""
    if node.target is operator.getitem and isinstance(node.args[0], fx.Node):
        return op_name(node.args[0]) == "max" and bool(node.args[1] == 0)
    return op_name(node) == "amax"


def _is_log_sum(node: fx.Node) -> bool:
    """A logarithm, also with the maximum added, as Inductor takes a log-sum-exp apart."""
    added = op_name(node) == "add" and any(op_name(unmoved(arg)) == "log" for arg in node.all_input_nodes)
    return added or op_name(node) in ("log", "logsumexp")


def unmoved(node: fx.Node) -> fx.Node:
    """The node whose elements `node` holds, moved or cast at most."""
    while op_name(node) in MOVES and node.all_input_nodes:
        node = node.all_input_nodes[0]
    return node
