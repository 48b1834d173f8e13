"""Find saved values whose error some backward operator would blow up, or whose use nobody can judge.

`find_hazards(bw, sources, gradients)` follows each source through what the backward rebuilds from it, and returns those
that meet

- a pole or the edge of a domain (division, logarithm, root, inverse function): a code that decodes to 0 where the value
  was 0.01 makes an Inf out of a good gradient. A divisor that stays away from zero whatever the source (`1 + exp(x)`,
  `variance + eps`) is no pole; an eps alone is one (`abs(x) + 1e-7`), for a single element may decode to zero;
- a derivative that jumps inside one operator, so that no predicate of it can be saved;
- an operator of which nothing is known: custom operators, higher-order operators, user kernels.

Read-only. The reasons are for the report.
"""

from collections.abc import Callable, Container

from torch import fx

from fxcompress.compat import HigherOrderOperator, OpOverload
from fxcompress.passes.find_signs import Signs, find_signs
from fxcompress.passes.follow import joined
from fxcompress.passes.ops import is_predicate, op_name

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


def find_hazards(bw: fx.GraphModule, sources: set[fx.Node], gradients: set[fx.Node]) -> dict[str, str]:
    """Names of sources that must stay exact, with the reason.

    Args:
        bw: backward graph.
        sources: its placeholders that may become lossy.
        gradients: its nodes that depend on a tangent; an error that has entered one is a gradient's error.
    """
    behind: dict[fx.Node, frozenset[str]] = {node: frozenset((node.name,)) for node in sources}
    signs = find_signs(bw.graph)
    found: dict[str, str] = {}
    for node in bw.graph.nodes:
        if node.op != "call_function" or op_name(node).startswith("sym_"):  # a size does not depend on values
            continue
        reached = joined(behind, node.all_input_nodes)
        if not reached:
            continue
        for arg, reason in _hazards(node, behind, signs):
            for name in behind.get(arg, frozenset()):
                found.setdefault(name, reason)
        # What a predicate is asked of, it is asked exactly: it is saved, or its source is exact.
        if node not in gradients and not is_predicate(node):
            behind[node] = reached
    return found


def _hazards(node: fx.Node, lossy: Container[fx.Node], signs: Signs) -> list[tuple[fx.Node, str]]:
    """Arguments of `node` that must not be lossy, each with the reason."""
    name = op_name(node)
    if _is_unknown(node):
        return [(arg, f"{name} reads it, an operator of which nothing is known") for arg in node.all_input_nodes]
    if name in _ALWAYS or (name == "elu_backward" and _has_kink(node)):
        return [(arg, f"{name} would jump or diverge on a lossy value") for arg in node.all_input_nodes if arg in lossy]
    position, safe = _pole(node, signs)
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


def _pole(node: fx.Node, signs: Signs) -> tuple[int, Callable[[fx.Node], bool]]:
    """Position of the argument that has a pole or a domain, and what makes it harmless; position -1 for none."""
    name = op_name(node)
    if name in _DIVISOR:
        return _DIVISOR[name], signs.is_positive
    if name in _DOMAIN:
        return _DOMAIN[name], signs.is_nonnegative
    if name == "pow" and isinstance(node.args[1], (int, float)):
        exponent = float(node.args[1])
        if exponent < 0 or (exponent % 1 and exponent < 1):
            return 0, signs.is_positive
        return (0, signs.is_nonnegative) if exponent % 1 else (-1, signs.is_positive)
    return (0, signs.is_positive) if name == "pow" and isinstance(node.args[0], fx.Node) else (-1, signs.is_positive)


def _has_kink(node: fx.Node) -> bool:
    """Whether this `elu_backward(grad, alpha, scale, input_scale, is_result, x)` jumps at 0."""
    _, alpha, _, input_scale, *_ = node.args
    return bool(float(str(alpha)) * float(str(input_scale)) != 1.0)
