"""Which matrix products may be logits: large ones that a normalization over the vocabulary reads. Read-only."""

from torch import fx

from fxcompress.passes.alias import elements_in, hint
from fxcompress.passes.follow import follow
from fxcompress.passes.ops import GEMMS, is_attention, is_real, op_name

NORMALIZERS = frozenset("amax logsumexp _log_softmax _softmax".split())
"""What makes a large product look like logits, so that a report says why it is not chunked."""


def large_products(graph: fx.Graph, least_nbytes: int) -> list[fx.Node]:
    """Matrix products that widen their operand to `least_nbytes` bytes or more: what may be logits."""
    return [node for node in graph.nodes if _is_start(node, least_nbytes)]


def fp32_nbytes(node: fx.Node) -> int:
    """Bytes of a value in fp32, in which losses compute."""
    return 4 * elements_in(node.meta["val"].shape)


def _is_start(node: fx.Node, least_nbytes: int) -> bool:
    if op_name(node) not in ("mm", "addmm") or not is_real(node):
        return False
    hidden = node.args[0 if op_name(node) == "mm" else 1]
    assert isinstance(hidden, fx.Node)
    return fp32_nbytes(node) >= least_nbytes and hint(node.meta["val"].shape[1]) > hint(hidden.meta["val"].shape[1])


def normalizes(start: fx.Node, tangents: set[fx.Node]) -> bool:
    """Whether a normalization over the vocabulary reads `start`, with no product in between and not in the backward."""

    def further(node: fx.Node) -> list[fx.Node]:
        users = [user for user in node.users if user not in tangents]
        return [user for user in users if op_name(user) not in GEMMS and not is_attention(user)]

    return any(op_name(node) in NORMALIZERS for node in follow([start], further))
