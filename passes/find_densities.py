"""Find arguments of log-sum-exps and softmaxes whose range has no bound: logarithms of densities, and sums of them.

The backward takes the exponential of the argument less its row's norm, so that a code's error, a share of the range,
is a factor there. Scores that a product makes range over tens. The logarithm of a Gaussian density grows with the
square of a distance over a deviation, to thousands where mixtures are trained, and the scores of paths (a CRF, soft
alignments) add up step by step: the factor is anything, and for the values that matter most. Such arguments stay exact,
and so do their norms and what the backward rebuilds them from. Read-only. The reasons are for the report.
"""

from collections.abc import Iterable, Sequence

from torch import fx

from fxcompress.passes.alias import numel_of
from fxcompress.passes.find_saved import SavedPair
from fxcompress.passes.follow import ancestors
from fxcompress.passes.logarithms import is_logarithm, saved_norms
from fxcompress.passes.ops import GEMMS, is_attention, op_name

_BOUNDED = GEMMS | frozenset("convolution tanh sigmoid _softmax _log_softmax embedding".split())
_EXPONENTIALS = frozenset("exp exp2 logsumexp".split())
_SPREAD = 64
"""Beside so many arguments for each of its own, an exponential is a scale that they share, such as a temperature."""
_DENSITY = "logarithms of densities, or sums of scores, whose range has no bound, are exponentiated"


def find_densities(
    bw: fx.GraphModule, pairs: Sequence[SavedPair], sources: set[fx.Node], gradients: set[fx.Node]
) -> dict[str, str]:
    """Names of sources that must stay exact, with the reason.

    Args:
        bw: backward graph.
        pairs: its saved tensors.
        sources: its placeholders that may become lossy.
        gradients: its nodes that depend on a tangent.
    """
    norms = saved_norms(pairs)
    logarithms = [node for node in bw.graph.nodes if node not in gradients and is_logarithm(node, norms)]
    if not logarithms:
        return {}
    grown = _grown(pairs[0].fw.graph.nodes, {}) if pairs else {}
    grown = _grown(bw.graph.nodes, {pair.bw: grown.get(pair.fw, 0) for pair in pairs})
    found: dict[str, str] = {}
    for node in logarithms:
        argument = node.args[0]
        if isinstance(argument, fx.Node) and grown.get(argument, 0) * _SPREAD > numel_of(argument):
            behind = sorted(source.name for source in ancestors(node) & sources)
            found |= dict.fromkeys(behind, f"{_DENSITY} ({node.name})")
    return found


def _grown(nodes: Iterable[fx.Node], known: dict[fx.Node, int]) -> dict[fx.Node, int]:
    """Elements of the squares or exponentials that each node is made of since the last product; 0 for none."""
    grown = dict(known)
    for node in nodes:
        if node.op == "call_function" and not (op_name(node) in _BOUNDED or "norm" in op_name(node)):
            inputs = [] if any(map(is_attention, node.all_input_nodes)) else node.all_input_nodes
            most = max((numel_of(arg) if _grows(node) else grown.get(arg, 0) for arg in inputs), default=0)
            grown[node] = min(most, numel_of(node))
    return grown


def _grows(node: fx.Node) -> bool:
    name, args = op_name(node), node.args
    squares = name == "pow" and isinstance(args[1], (int, float)) and args[1] >= 2
    return squares or name in _EXPONENTIALS or (name == "mul" and args[0] is args[1])
