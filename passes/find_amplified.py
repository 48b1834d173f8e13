"""Find saved values whose error some later step of the backward would multiply without limit.

`find_amplified(bw, sources, gradients)` returns the sources of which a pointwise way leads to

- a division, element by element, by values that may be near zero. The gradient of a product is (result · gradient) /
  factor, where the result is as small as the factor; its error is as large as the largest result of the group. A
  divisor that many elements share, such as a row's norm, is not as small as one of them;
- an exponential of a sum with a gradient: gradients kept as logarithms (logcumsumexp) turn errors into factors.

Unlike `find_hazards`, which judges what is computed from a source alone, it follows the error into the gradients.
Read-only. The reasons are for the report.
"""

from torch import fx

from fxcompress.passes.alias import numel_of
from fxcompress.passes.find_signs import Signs, find_signs
from fxcompress.passes.follow import joined
from fxcompress.passes.ops import MOVES, is_predicate, op_name

_CARRY = MOVES | frozenset("mul neg gather index index_select cumsum where masked_fill".split())
"""Operators that hand an element's error on to the element's product, or to a few of them."""
_LOGARITHMIC = MOVES | frozenset("add sub logcumsumexp logsumexp".split())
_SHARED = 8
"""A divisor that serves this many elements is made of many."""
_DIVIDED = "its error is divided by values that may be near zero"
_EXPONENTIATED = "its error is exponentiated with a gradient"


def find_amplified(bw: fx.GraphModule, sources: set[fx.Node], gradients: set[fx.Node]) -> dict[str, str]:
    """Names of sources that must stay exact, with the reason.

    Args:
        bw: backward graph.
        sources: its placeholders that may become lossy.
        gradients: its nodes that depend on a tangent.
    """
    behind = {node: frozenset((node.name,)) for node in sources}
    exponentiated, signs = _exponentiated(bw), find_signs(bw.graph)
    steep: dict[fx.Node, int] = {}
    found: dict[str, str] = {}
    for node in bw.graph.nodes:
        if node.op != "call_function" or is_predicate(node):
            continue
        for arg, reason in _amplified(node, steep, gradients, exponentiated, signs):
            for name in sorted(behind.get(arg, ())):
                found.setdefault(name, f"{reason} ({node.name})")
        carries = op_name(node) in _CARRY
        if carries or node not in gradients:
            behind[node] = joined(behind, node.all_input_nodes)
        slopes = [steep[arg] for arg in node.all_input_nodes if carries and arg in steep]
        divisor = _divisor(node, signs) if node in gradients else None
        if divisor is not None:
            slopes.append(numel_of(divisor))
        if slopes:
            steep[node] = max(slopes)
    return found


def _amplified(
    node: fx.Node, steep: dict[fx.Node, int], gradients: set[fx.Node], exponentiated: set[fx.Node], signs: Signs
) -> list[tuple[fx.Node, str]]:
    """Arguments of `node` whose error it multiplies without limit, each with the reason."""
    name, inputs, divisor = op_name(node), node.all_input_nodes, _divisor(node, signs)
    if divisor is not None and isinstance(node.args[0], fx.Node) and numel_of(divisor) * _SHARED > numel_of(node):
        return [(node.args[0], _DIVIDED)]
    if name == "mul" and any(arg in steep and steep[arg] * _SHARED > numel_of(node) for arg in inputs):
        return [(arg, _DIVIDED) for arg in inputs if arg not in steep]
    if name in ("add", "sub") and node in gradients and node in exponentiated:
        return [(arg, _EXPONENTIATED) for arg in inputs if arg not in gradients]
    return []


def _divisor(node: fx.Node, signs: Signs) -> fx.Node | None:
    """What `node` divides by, if that may have elements near zero."""
    divisor = node.args[1] if op_name(node) in ("div", "true_divide") else None
    return divisor if isinstance(divisor, fx.Node) and not signs.is_positive(divisor) else None


def _exponentiated(bw: fx.GraphModule) -> set[fx.Node]:
    """Nodes that are logarithms of what an exponential is taken of."""
    found: set[fx.Node] = set()
    for node in reversed(bw.graph.nodes):
        if any(op_name(user) == "exp" or (user in found and op_name(user) in _LOGARITHMIC) for user in node.users):
            found.add(node)
    return found
