"""Find saved values whose error the backward would let grow, as what computed them tells.

`find_growing(bw, pairs, sources, gradients)` returns the sources that

- are a running sum, or that one is rebuilt from, of which the backward takes an exponential: decays of linear attention
  and of state spaces. The sum grows with the sequence, and with it the step of its codes, by whose exponential the
  result is then wrong;
- are an exponential of a running sum or a running product, or a product with one, where the program takes that of its
  negative, too, or divides by it: in their product small ones count as much as large ones, beside which codes lose
  them;
- are factors of which the backward takes running products, as the derivative of a product of many does: each counts by
  its relative error, and a small one's is large;
- are a pseudo-inverse, or what its argument is rebuilt from: its derivative takes differences of both that cancel;
- are factors of a matrix (its eigenvectors, singular vectors or orthogonal part), or computed from them by anything but
  products of matrices: the derivative divides products with them by differences of eigenvalues, or solves with them.

Read-only. The reasons are for the report.
"""

from collections.abc import Sequence

from torch import fx

from fxcompress.passes.find_saved import SavedPair
from fxcompress.passes.follow import follow, joined
from fxcompress.passes.ops import GEMMS, MOVES, is_view, op_name

_CARRY = MOVES | frozenset("add sub neg mul div where masked_fill index gather index_select tril triu cumsum".split())
_EXPONENTIALS = frozenset(["exp", "exp2", "expm1"])
_EXPONENTIATED = "an exponential of a running sum multiplies its error"
_BOTH_WAYS = "it grows with an exponential of a running sum and is multiplied by one of its negative"
_INVERSE = "the derivative of a pseudo-inverse takes differences that cancel"
_FACTORED = "the derivative of factors of a matrix divides products with them by small differences"
_MULTIPLIED = "its relative error is that of a product of many"
_FACTORS = frozenset("_linalg_eigh _linalg_svd linalg_qr linalg_householder_product".split())
Signs = frozenset[tuple[fx.Node, int]]
"""Running sums with 1 or -1, as they stand in a value."""


def find_growing(
    bw: fx.GraphModule, pairs: Sequence[SavedPair], sources: set[fx.Node], gradients: set[fx.Node]
) -> dict[str, str]:
    """Names of sources that must stay exact, with the reason.

    Args:
        bw: backward graph.
        pairs: its saved tensors.
        sources: its placeholders that may become lossy.
        gradients: its nodes that depend on a tangent.
    """
    forward = pairs[0].fw.graph if pairs else fx.Graph()
    sums = _running_sums(forward)
    both_ways = _both_ways(forward, sums)
    reasons = dict.fromkeys(_factored(forward), _FACTORED) | dict.fromkeys(_inverted(forward), _INVERSE)
    reasons |= dict.fromkeys(both_ways, _BOTH_WAYS)
    found = {pair.bw.name: reasons[pair.fw] for pair in pairs if pair.bw in sources and pair.fw in reasons}
    return found | _multiplying(bw, {pair.bw for pair in pairs if sums.get(pair.fw)}, sources, gradients)


def _multiplying(
    bw: fx.GraphModule, running: set[fx.Node], sources: set[fx.Node], gradients: set[fx.Node]
) -> dict[str, str]:
    """Sources behind running products and the exponentials of running sums in the backward; some are `running` sums
    already."""
    found: dict[str, str] = {}
    if not running and not any(op_name(node) in ("cumsum", "cumprod") for node in bw.graph.nodes):
        return found
    behind = {node: frozenset((node.name,)) for node in sources}
    summed = set(running)
    for node in bw.graph.nodes:
        inputs = node.all_input_nodes
        reached = joined(behind, inputs)
        if node.op != "call_function" or node in gradients or not reached:
            continue
        behind[node] = reached
        if op_name(node) == "cumsum" or (_carries(node) and not summed.isdisjoint(inputs)):
            summed.add(node)
        for arg in inputs if _is_exponential(node) else ():
            if arg in summed:
                found.update(dict.fromkeys(behind.get(arg, ()), f"{_EXPONENTIATED} ({node.name})"))
        if op_name(node) == "cumprod":
            found.update(dict.fromkeys(reached, f"{_MULTIPLIED} ({node.name})"))
    return found


def _running_sums(graph: fx.Graph) -> dict[fx.Node, Signs]:
    """Running sums, moved, scaled and in sums, with their signs."""
    signs: dict[fx.Node, Signs] = {}
    for node in graph.nodes:
        if op_name(node) == "cumsum":
            signs[node] = frozenset([(node, 1)])
        elif _carries(node):
            parts = [signs[arg] if _keeps_sign(node, arg) else _turned(signs[arg]) for arg in _held(node, signs)]
            signs[node] = frozenset[tuple[fx.Node, int]]().union(*parts)
    return signs


def _both_ways(graph: fx.Graph, sums: dict[fx.Node, Signs]) -> set[fx.Node]:
    """Exponentials of a running sum that another is taken of with the other sign, or that something is divided by, and
    what they are multiplied to."""
    taken = [(node, sums.get(node.all_input_nodes[0], frozenset())) for node in _exponentials(graph)]
    taken += [(node, frozenset([(node, 1)])) for node in graph.nodes if op_name(node) == "cumprod"]
    one_way = [(node, {(total, sign) for total, sign in signs if (total, -sign) not in signs}) for node, signs in taken]
    known = {pair for _, signs in one_way for pair in signs}
    found = {
        node
        for node, signs in one_way
        if any((total, -sign) in known for total, sign in signs) or (signs and _is_divisor(node))
    }
    for node in graph.nodes:
        carries = _carries(node) or op_name(node) == "reciprocal"
        if carries and not found.isdisjoint(node.all_input_nodes):
            found.add(node)
    return found


def _is_divisor(node: fx.Node) -> bool:
    """Whether something is divided by it, or by a view of it."""
    return any(
        op_name(user) == "reciprocal" or (op_name(user) == "div" and user.args[1] is view)
        for view in follow([node], lambda view: filter(is_view, view.users))
        for user in view.users
    )


def _inverted(graph: fx.Graph) -> set[fx.Node]:
    """Pseudo-inverses, and what their arguments are computed from by anything but products of matrices."""
    found: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        wanted = any(user in found and op_name(user) not in GEMMS for user in node.users)
        if op_name(node) == "linalg_pinv" or wanted:
            found.add(node)
    return found


def _factored(graph: fx.Graph) -> set[fx.Node]:
    """Factors of matrices, and what is computed from them by anything but products of matrices."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        if op_name(node) in _FACTORS or not (op_name(node) in GEMMS or found.isdisjoint(node.all_input_nodes)):
            found.add(node)
    return found


def _exponentials(graph: fx.Graph) -> list[fx.Node]:
    return [node for node in graph.nodes if _is_exponential(node) and node.all_input_nodes]


def _is_exponential(node: fx.Node) -> bool:
    """Of its only argument, to whatever base."""
    return op_name(node) in _EXPONENTIALS or (op_name(node) == "pow" and isinstance(node.args[0], (int, float)))


def _held(node: fx.Node, signs: dict[fx.Node, Signs]) -> list[fx.Node]:
    return [arg for arg in node.all_input_nodes if arg in signs]


def _keeps_sign(node: fx.Node, arg: fx.Node) -> bool:
    if op_name(node) in ("mul", "div"):
        return not any(isinstance(other, (int, float)) and other < 0 for other in node.args)
    return op_name(node) != "neg" and not (op_name(node) == "sub" and arg is node.args[1])


def _turned(signs: Signs) -> Signs:
    return frozenset((total, -sign) for total, sign in signs)


def _carries(node: fx.Node) -> bool:
    return op_name(node) in _CARRY or is_view(node)
