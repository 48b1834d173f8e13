"""Whether a cut has its backward draw random numbers again, which would not be those of the forward. Read-only."""

from collections.abc import Set

from torch import fx

from fxcompress.compat import OpOverload
from fxcompress.passes.estimate_cut import Sketch
from fxcompress.passes.ops import is_attention


def draws_again(sketch: Sketch, once: Set[fx.Node]) -> bool:
    """Whether the backward computes again what may run only once: at a memory budget, PyTorch redraws dropout masks."""
    again = [node for node in sketch.backward.nodes if node in sketch.forward.members]
    return any(node in once and not _drops_nothing(node) for node in again)


def _drops_nothing(node: fx.Node) -> bool:
    """Attention that is told not to drop anything, and so is the same every time."""
    if not is_attention(node) or not isinstance(node.target, OpOverload):
        return False
    names = [argument.name for argument in node.target._schema.arguments]
    return bool(dict(zip(names, node.args, strict=False), **node.kwargs).get("dropout_p", 0.0) == 0.0)
