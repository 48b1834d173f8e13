"""Which operators are linear in a gradient, so that a factor may be applied after them.

`explain_nonlinear(node, tangents)` is empty if `node` is linear and homogeneous in those of its operands that depend on
a tangent: with the tangent replaced by one, the result times the tangent is the same up to rounding. Read-only.
"""

import torch
from torch import fx

from fxcompress.passes.find_saved import is_tangent
from fxcompress.passes.ops import MOVES, op_name
from fxcompress.passes.row_slices import is_zero

_MOVES = MOVES | frozenset("neg sum mean squeeze unsqueeze _unsafe_view view".split())
_FIRST = frozenset(
    "_log_softmax_backward_data _softmax_backward_data slice_backward gather div masked_fill index".split()
)
"""Linear in the first operand alone."""
_WIDE_RANGE = frozenset({torch.float64, torch.float32, torch.bfloat16})
"""In range for a tangent of one wherever they are for others; float16 and float8 live off the scale."""
_SUMS = frozenset("add sub where slice_scatter scatter scatter_add".split())
"""Linear if every operand that holds values is a gradient or zero."""


def depends_on_tangents(graph: fx.Graph) -> set[fx.Node]:
    """Nodes that depend on a tangent, tangents included."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        if is_tangent(node) or (node.op == "call_function" and any(arg in found for arg in node.all_input_nodes)):
            found.add(node)
    return found


def explain_nonlinear(node: fx.Node, tangents: set[fx.Node]) -> str:
    """Why `node` is not linear in its operands among `tangents`; empty if it is."""
    val = node.meta.get("val")
    if not isinstance(val, torch.Tensor) or not val.dtype.is_floating_point:
        return f"{op_name(node)} is not linear in the loss's gradient"
    if val.dtype not in _WIDE_RANGE:
        return f"a {str(val.dtype).removeprefix('torch.')} gradient needs the scale that its tangent brings"
    return "" if _is_linear(node, tangents) else f"{op_name(node)} is not linear in the loss's gradient"


def _is_linear(node: fx.Node, tangents: set[fx.Node]) -> bool:
    name, args = op_name(node), list(node.args)
    given = [i for i, arg in enumerate(args) if isinstance(arg, fx.Node) and arg in tangents]
    if name == "fma":
        return given in ([0, 2], [1, 2]) or (given in ([0], [1]) and is_zero(args[2]))
    if name == "masked_fill" and not is_zero(args[2]):
        return False
    if name == "div" and node.kwargs.get("rounding_mode") is not None:
        return False
    if name in _SUMS:
        values = args[1:] if name == "where" else [args[0], args[3]] if name.startswith("scatter") else args[:2]
        return all(is_zero(arg) or arg in tangents for arg in values) and (name != "where" or args[0] not in tangents)
    if name in ("mul", "mm", "bmm"):
        return len(given) == 1
    if name == "constant_pad_nd":
        return given == [0] and (len(args) < 3 or is_zero(args[2]))
    if name in _MOVES and name != "cat":
        return given == [0]
    return given == [0] and (name in _FIRST or name.endswith("_backward"))
