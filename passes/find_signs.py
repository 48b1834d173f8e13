"""Which values are positive, not negative, or steady, whatever the values they are computed from. Read-only.

`find_signs(graph)` is one sweep in the graph's order. What it does not know of an operator, it denies.
"""

import operator
from collections.abc import Sequence, Set
from dataclasses import dataclass

from torch import fx

from fxcompress.passes.find_statistics import shrinks
from fxcompress.passes.ops import MOVES, REDUCTIONS, op_name

_POSITIVE = frozenset(["exp", "exp2", "cosh", "sigmoid", "softplus"])
_NONNEGATIVE = _POSITIVE | frozenset(["abs", "relu", "square", "sqrt", "var", "norm", "linalg_vector_norm", "_softmax"])
_KEEP_SIGN = MOVES | frozenset(["sum", "mean", "amax", "amin", "prod"])
_SUPPORT = _KEEP_SIGN | frozenset(["sqrt", "rsqrt", "reciprocal"])
_MARGIN = 0.5
"""A constant from here on keeps a sum of pointwise values away from zero; an eps below does not."""
_STEADY = _POSITIVE | frozenset(["_softmax"])
"""An error of the argument changes the result by a factor, however small it is."""
_CONSTANTS = ("full", "full_like", "scalar_tensor")
_POINTWISE = MOVES | frozenset("sqrt mul add div pow abs clamp_min clamp maximum".split())


@dataclass(frozen=True, slots=True)
class Signs:
    """What is known of the nodes of a graph, and of numbers."""

    positive: Set[fx.Node]
    nonnegative: Set[fx.Node]
    steady: Set[fx.Node]

    def is_positive(self, arg: object) -> bool:
        """Whether the elements stay away from zero, above it."""
        return arg in self.positive if isinstance(arg, fx.Node) else _number(arg) > 0

    def is_nonnegative(self, arg: object) -> bool:
        """Whether no element is negative."""
        return arg in self.nonnegative if isinstance(arg, fx.Node) else isinstance(arg, (int, float)) and arg >= 0

    def is_steady(self, arg: object) -> bool:
        """Whether no error of a single element can bring it near zero: a reduction of many, or a factor of its own."""
        return arg in self.steady if isinstance(arg, fx.Node) else True


def find_signs(graph: fx.Graph) -> Signs:
    """What is known of all nodes of a graph."""
    positive, nonnegative, steady = set[fx.Node](), set[fx.Node](), set[fx.Node]()
    signs = Signs(positive, nonnegative, steady)
    for node in graph.nodes:
        if node.op != "call_function":
            continue
        if _is_positive(node, signs):
            positive.add(node)
        if _is_nonnegative(node, signs):
            nonnegative.add(node)
        if _is_steady(node, signs):
            steady.add(node)
    return signs


def _is_positive(node: fx.Node, signs: Signs) -> bool:
    name, args = op_name(node), node.args
    if name in _POSITIVE:
        return True
    if name in _CONSTANTS:
        return _number(args[-1]) > 0
    if name == "add":
        return any(_keeps_away(bound, rest, signs) and signs.is_nonnegative(rest) for bound, rest in _both_ways(args))
    if name in ("clamp_min", "clamp", "maximum"):
        return len(args) > 1 and _keeps_away(args[1], args[0], signs)
    if name in ("mul", "div"):
        return all(map(signs.is_positive, args[:2]))
    return name in _SUPPORT and all(map(signs.is_positive, node.all_input_nodes))


def _both_ways(args: Sequence[object]) -> tuple[Sequence[object], Sequence[object]]:
    return args[:2], args[1::-1]


def _keeps_away(bound: object, rest: object, signs: Signs) -> bool:
    """Whether a value no smaller than `bound`, and else made of `rest`, is far from zero beside the error of `rest`."""
    if not signs.is_positive(bound):
        return False
    value = bound.args[-1] if isinstance(bound, fx.Node) and op_name(bound) in _CONSTANTS else bound
    return isinstance(value, fx.Node) or _number(value) >= _MARGIN or signs.is_steady(rest)


def _is_nonnegative(node: fx.Node, signs: Signs) -> bool:
    name, args = op_name(node), node.args
    if name in _NONNEGATIVE or node in signs.positive:
        return True
    if name == "pow":
        return isinstance(args[1], (int, float)) and args[1] % 2 == 0
    if name == "mul" and args[0] is args[1]:
        return True
    if name in ("add", "mul", "div"):
        return all(map(signs.is_nonnegative, args[:2]))
    if node.target is operator.getitem and isinstance(args[0], fx.Node):
        return op_name(args[0]) in ("var_mean", "std_mean") and bool(args[1] == 0)
    return name in _KEEP_SIGN and all(map(signs.is_nonnegative, node.all_input_nodes))


def _is_steady(node: fx.Node, signs: Signs) -> bool:
    source = node.args[0] if node.target is operator.getitem else node
    if isinstance(source, fx.Node) and op_name(source) in REDUCTIONS - {"amin", "min", "prod"}:
        return shrinks(source, node)
    inputs = node.all_input_nodes
    pointwise = op_name(node) in _POINTWISE and all(map(signs.is_steady, inputs))
    return op_name(node) in _STEADY or (pointwise and bool(inputs))


def _number(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) else 0.0
