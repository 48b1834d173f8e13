"""Find saved rows that are compared by their directions, row by row: near agreement their gradient is a difference.

The derivative of the cosine of two rows weighs each row and the other one alike and subtracts: of rows that agree but
for a few per cent, as of a regression of embeddings near its optimum, that leaves a few per cent, and as much of each
row's error as before. `find_aligned(fw, bw, pairs, sources, gradients)` returns the sources that such rows, with
lengths or divided by them, are had from. Rows of which all pairs are multiplied, as those of a contrastive loss, have
more to tell apart than that, and are left to `find_lengths`.

Read-only. The reasons are for the report.
"""

from collections.abc import Iterator, Sequence

from torch import fx

from fxcompress.passes.alias import numel_of
from fxcompress.passes.find_saved import SavedPair
from fxcompress.passes.follow import follow
from fxcompress.passes.ops import MOVES, is_real, is_square, op_name
from fxcompress.passes.rebuilt_from import rebuilt_from

_SCALES = MOVES | frozenset("div mul sub add neg masked_fill".split())
"""What is done to whole rows: divided by a length, or their mean subtracted."""
_REASON = "its rows' directions are compared, row by row, with others"


def find_aligned(
    fw: fx.GraphModule, bw: fx.GraphModule, pairs: Sequence[SavedPair], sources: set[fx.Node], gradients: set[fx.Node]
) -> dict[str, str]:
    """Names of sources that must stay exact, with the reason.

    Args:
        fw, bw: the pair.
        pairs: its saved tensors.
        sources: placeholders of the backward that may become lossy.
        gradients: nodes of the backward that depend on a tangent.
    """
    values = _scaled(fw.graph, set[fx.Node]().union(*_compared(fw.graph)))
    return dict.fromkeys(rebuilt_from(bw, pairs, sources, gradients, values), _REASON)


def _compared(graph: fx.Graph) -> Iterator[set[fx.Node]]:
    """Rows whose inner products are taken, with what they are the rows of, where a length is taken of any."""
    for node in graph.nodes:
        if op_name(node) != "mul" or not _is_whole(node) or not _is_summed(node):
            continue
        left, right = (_rows_of(arg) for arg in node.all_input_nodes)
        if left.isdisjoint(right) and any(_has_length(row) for row in left | right):
            yield left | right


def _is_whole(product: fx.Node) -> bool:
    """Whether both factors are tensors of the product's own size."""
    factors = product.all_input_nodes
    return len(factors) == 2 and all(_numel(factor) == _numel(product) for factor in factors)


def _is_summed(product: fx.Node) -> bool:
    return all(op_name(user) in ("sum", "mean") and user.args[0] is product for user in product.users)


def _rows_of(node: fx.Node) -> set[fx.Node]:
    """`node` and what its rows are moved, centered or scaled from."""
    return set(follow([node], _whole))


def _scaled(graph: fx.Graph, rows: set[fx.Node]) -> set[fx.Node]:
    """`rows` and what they are moved, centered or scaled to, as the derivative of a length does again."""
    found = set(rows)
    for node in graph.nodes if rows else ():
        if not found.isdisjoint(_whole(node)):
            found.add(node)
    return found


def _whole(node: fx.Node) -> list[fx.Node]:
    """The argument whose rows `node` moves or scales by a number each; none where it mixes rows of several."""
    if op_name(node) not in _SCALES:
        return []
    whole = [arg for arg in node.all_input_nodes if _numel(arg) == _numel(node)]
    return whole if len(whole) == 1 else []


def _has_length(node: fx.Node) -> bool:
    """Whether lengths of its rows are taken: a norm, or a sum of its squares."""
    lengths = (op_name(user) == "linalg_vector_norm" for user in node.users)
    squares = filter(is_square, node.users)
    return any(lengths) or any(op_name(total) == "sum" for square in squares for total in square.users)


def _numel(node: fx.Node) -> int:
    """Elements of a floating-point tensor, 0 for anything else."""
    return numel_of(node) if is_real(node) else 0
