"""Find saved values whose error some backward operator would blow up, or whose use nobody can judge.

`find_hazards(bw, sources)` follows each source through what the backward rebuilds from it, and returns those that meet

- a pole or the edge of a domain (division, logarithm, root, inverse function): a code that decodes to 0 where the value
  was 0.01 makes an Inf out of a good gradient. A divisor that stays away from zero whatever the source (`1 + exp(x)`,
  `variance + eps`) is no pole; an eps alone is one (`abs(x) + 1e-7`), for a single element may decode to zero;
- a derivative that jumps inside one operator, so that no predicate of it can be saved;
- an operator of which nothing is known: custom operators, higher-order operators, user kernels.

Read-only. The reasons are for the report.
"""

import operator
from collections.abc import Callable, Container

from torch import fx

from fxcompress.compat import HigherOrderOperator, OpOverload
from fxcompress.passes.find_statistics import shrinks
from fxcompress.passes.ops import MOVES, REDUCTIONS, is_predicate, op_name

_KNOWN = ("aten", "prims", "inductor_prims", "_c10d_functional", "c10d_functional")
_RANDOM_AGAIN = ("run_with_rng_state", "graphsafe_run_with_rng_state")
"""Repeat the operator that is among their arguments with the random state of the forward."""
_BILINEAR = frozenset(["transformers::grouped_mm_fallback", "transformers::grouped_mm_fallback_backward"])
"""Custom operators known to be products of their operands: the grouped matrix product of mixture-of-experts layers."""
_DIVISOR = {"div": 1, "true_divide": 1, "reciprocal": 0, "rsqrt": 0, "log": 0, "log2": 0, "log10": 0}
_DOMAIN = {"sqrt": 0, "log1p": 0}
_JUMPING = (
    "threshold hardshrink heaviside copysign hardswish_backward _prelu_kernel_backward rrelu_with_noise_backward "
    "_segment_reduce_backward"
)
_DIVERGING = (
    "acos asin acosh atanh tan erfinv logit logit_backward digamma lgamma polygamma atan2 _standard_gamma_grad "
    "_dirichlet_grad"
)
_INVERTING = (
    "linalg_lu_solve linalg_solve_triangular triangular_solve cholesky_solve linalg_inv_ex linalg_ldl_solve "
    "_linalg_solve_ex lu_solve cholesky_inverse linalg_pinv"
)
"""Solve with a matrix that an error can make singular."""
_LOSSES = "binary_cross_entropy_backward multi_margin_loss_backward multilabel_margin_loss_backward _ctc_loss_backward"
_PLACES = "grid_sampler_2d_backward grid_sampler_3d_backward _cdist_backward _pdist_backward"
_ALWAYS = frozenset(" ".join((_JUMPING, _DIVERGING, _INVERTING, _LOSSES, _PLACES)).split())
_POSITIVE = frozenset(["exp", "exp2", "cosh", "sigmoid", "softplus"])
_NONNEGATIVE = _POSITIVE | frozenset(["abs", "relu", "square", "sqrt", "var", "norm", "linalg_vector_norm", "_softmax"])
_KEEP_SIGN = MOVES | frozenset(["sum", "mean", "amax", "amin", "prod"])
_DEPTH = 24
_MARGIN = 0.5
"""A constant from here on keeps a sum of pointwise values away from zero; an eps below does not."""
_STEADY = _POSITIVE | frozenset(["_softmax"])
"""An error of the argument changes the result by a factor, however small it is."""
_CONSTANTS = ("full", "full_like", "scalar_tensor")
_POINTWISE = MOVES | frozenset("sqrt mul add div pow abs clamp_min clamp maximum".split())
_SUPPORT = _KEEP_SIGN | frozenset(["sqrt", "rsqrt", "reciprocal"])


def find_hazards(bw: fx.GraphModule, sources: set[fx.Node], gradients: set[fx.Node]) -> dict[str, str]:
    """Names of sources that must stay exact, with the reason.

    Args:
        bw: backward graph.
        sources: its placeholders that may become lossy.
        gradients: its nodes that depend on a tangent; an error that has entered one is a gradient's error.
    """
    behind: dict[fx.Node, frozenset[str]] = {node: frozenset((node.name,)) for node in sources}
    found: dict[str, str] = {}
    for node in bw.graph.nodes:
        if node.op != "call_function" or op_name(node).startswith("sym_"):  # a size does not depend on values
            continue
        reached = frozenset[str]().union(*(behind.get(arg, frozenset()) for arg in node.all_input_nodes))
        if not reached:
            continue
        for arg, reason in _hazards(node, behind):
            for name in behind.get(arg, frozenset()):
                found.setdefault(name, reason)
        # What a predicate is asked of, it is asked exactly: it is saved, or its source is exact.
        if node not in gradients and not is_predicate(node):
            behind[node] = reached
    return found


def _hazards(node: fx.Node, lossy: Container[fx.Node]) -> list[tuple[fx.Node, str]]:
    """Arguments of `node` that must not be lossy, each with the reason."""
    name = op_name(node)
    if _is_unknown(node):
        return [(arg, f"{name} reads it, an operator of which nothing is known") for arg in node.all_input_nodes]
    if name in _ALWAYS or (name == "elu_backward" and _has_kink(node)):
        return [(arg, f"{name} would jump or diverge on a lossy value") for arg in node.all_input_nodes if arg in lossy]
    position, safe = _pole(node)
    arg = node.args[position] if 0 <= position < len(node.args) else None
    if not isinstance(arg, fx.Node) or arg not in lossy or safe(arg):
        return []
    return [(arg, f"{name} would diverge where a lossy value decodes to zero ({node.name})")]


def _is_unknown(node: fx.Node) -> bool:
    target = node.target
    if op_name(node) in _RANDOM_AGAIN:
        target = next((arg for arg in node.args[:2] if isinstance(arg, OpOverload)), target)
    if isinstance(target, OpOverload):
        return target.namespace not in _KNOWN and target._schema.name not in _BILINEAR
    return isinstance(node.target, HigherOrderOperator)


def _pole(node: fx.Node) -> tuple[int, Callable[[fx.Node], bool]]:
    """Position of the argument that has a pole or a domain, and what makes it harmless; position -1 for none."""
    name = op_name(node)
    if name in _DIVISOR:
        return _DIVISOR[name], is_positive
    if name in _DOMAIN:
        return _DOMAIN[name], is_nonnegative
    if name == "pow" and isinstance(node.args[1], (int, float)):
        exponent = float(node.args[1])
        if exponent < 0 or (exponent % 1 and exponent < 1):
            return 0, is_positive
        return (0, is_nonnegative) if exponent % 1 else (-1, is_positive)
    return (0, is_positive) if name == "pow" and isinstance(node.args[0], fx.Node) else (-1, is_positive)


def _has_kink(node: fx.Node) -> bool:
    """Whether this `elu_backward(grad, alpha, scale, input_scale, is_result, x)` jumps at 0."""
    _, alpha, _, input_scale, *_ = node.args
    return bool(float(str(alpha)) * float(str(input_scale)) != 1.0)


def is_positive(node: fx.Node, depth: int = 0) -> bool:
    """Whether the elements stay away from zero, above it, whatever the values they are computed from."""
    name, args = op_name(node), node.args
    if node.op != "call_function" or depth > _DEPTH:
        return False
    if name in _POSITIVE:
        return True
    if name in _CONSTANTS:
        return _number(args[-1]) > 0
    if name == "add":
        return _sum_positive(args, depth)
    if name in ("clamp_min", "clamp", "maximum"):
        return len(args) > 1 and _keeps_away(args[1], args[0], depth)
    if name in ("mul", "div"):
        return all(_positive(arg, depth) for arg in args[:2])
    return name in _SUPPORT and all(is_positive(arg, depth + 1) for arg in node.all_input_nodes)


def _sum_positive(args: tuple[object, ...], depth: int) -> bool:
    pairs = (args[:2], args[1::-1])
    return any(_keeps_away(bound, rest, depth) and _nonnegative(rest, depth) for bound, rest in pairs)


def _keeps_away(bound: object, rest: object, depth: int) -> bool:
    """Whether a value no smaller than `bound`, and else made of `rest`, is far from zero beside the error of `rest`."""
    if not _positive(bound, depth):
        return False
    value = bound.args[-1] if isinstance(bound, fx.Node) and op_name(bound) in _CONSTANTS else bound
    return isinstance(value, fx.Node) or _number(value) >= _MARGIN or is_steady(rest, depth + 1)


def is_steady(arg: object, depth: int = 0) -> bool:
    """Whether no error of a single element can bring `arg` near zero: a reduction of many, or a factor of its own."""
    if not isinstance(arg, fx.Node):
        return True
    source = arg.args[0] if arg.target is operator.getitem else arg
    if arg.op != "call_function" or not isinstance(source, fx.Node) or depth > _DEPTH:
        return False
    if op_name(source) in REDUCTIONS - {"amin", "min", "prod"}:
        return shrinks(source, arg)
    inputs = arg.all_input_nodes
    pointwise = op_name(arg) in _POINTWISE and all(is_steady(node, depth + 1) for node in inputs)
    return op_name(arg) in _STEADY or (pointwise and bool(inputs))


def is_nonnegative(node: fx.Node, depth: int = 0) -> bool:
    """Whether no element is negative, whatever the values they are computed from."""
    name, args = op_name(node), node.args
    if node.op != "call_function" or depth > _DEPTH:
        return False
    if name in _NONNEGATIVE or is_positive(node, depth + 1):
        return True
    if name == "pow":
        return isinstance(args[1], (int, float)) and args[1] % 2 == 0
    if name == "mul" and args[0] is args[1]:
        return True
    if name in ("add", "mul", "div"):
        return all(_nonnegative(arg, depth) for arg in args[:2])
    if node.target is operator.getitem and isinstance(args[0], fx.Node):
        return op_name(args[0]) in ("var_mean", "std_mean") and bool(args[1] == 0)
    return name in _KEEP_SIGN and all(is_nonnegative(arg, depth + 1) for arg in node.all_input_nodes)


def _number(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) else 0.0


def _positive(arg: object, depth: int) -> bool:
    return is_positive(arg, depth + 1) if isinstance(arg, fx.Node) else _number(arg) > 0


def _nonnegative(arg: object, depth: int) -> bool:
    if isinstance(arg, fx.Node):
        return is_nonnegative(arg, depth + 1)
    return isinstance(arg, (int, float)) and arg >= 0
