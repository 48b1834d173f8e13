"""Keep Inductor from putting off a product until its sum, for its operands would have to wait in memory.

Inductor writes `mm(a, b) + c` as one `addmm`, which runs where the sum stands. Where `c` comes much later, `a` and `b`
stay alive until then: the gradient of a weight that a language model uses as embedding and as head is such a sum, and
the product's operand is the gradient of all logits, held from the first kernel of the backward to its last.
`pin_products` lets such a sum read the product through a view, which Inductor does not look through. Exact; the two
roundings of a product and a sum take the place of `addmm`'s.
"""

import torch
from torch import fx

from fxcompress.passes.alias import storage_key, storage_nbytes
from fxcompress.passes.find_saved import placeholders
from fxcompress.passes.ops import base_of, is_view, op_name
from fxcompress.passes.splice import same_view


def pin_products(fw: fx.GraphModule, bw: fx.GraphModule) -> tuple[str, ...]:
    """Pin each product whose operands would otherwise outlive it by more bytes than its result has.

    Args:
        fw: only its inputs are read: what the caller holds is no burden.
        bw: the backward, edited in place.

    Returns:
        The names of the pinned products.
    """
    held = {node.name for node in placeholders(fw)}
    order = {node: i for i, node in enumerate(bw.graph.nodes)}
    last = _last_uses(bw.graph, order)
    pinned = []
    for node in bw.graph.find_nodes(op="call_function", target=torch.ops.aten.mm.default):
        total = _deferred_to(node, order)
        if (
            total is not None
            and not _is_pinned(node)
            and _waiting_nbytes(node, total, held, order, last) > storage_nbytes(node.meta["val"])
        ):
            order[_read_through_view(bw.graph, node)] = order[node]
            pinned.append(node.name)
    return tuple(pinned)


def _deferred_to(product: fx.Node, order: dict[fx.Node, int]) -> fx.Node | None:
    """The sum that alone reads `product`, maybe through views that cancel, if its other term is computed later."""
    term = product
    while len(term.users) == 1:
        (user,) = term.users
        if op_name(user) == "add":
            others = [arg for arg in user.all_input_nodes if arg is not term]
            return user if len(others) == 1 and order[others[0]] > order[product] else None
        if not is_view(user):
            return None
        term = user
    return None


def _is_pinned(product: fx.Node) -> bool:
    return any(op_name(user) == "as_strided" for user in product.users)


def _waiting_nbytes(
    product: fx.Node, total: fx.Node, held: set[str], order: dict[fx.Node, int], last: dict[int, int]
) -> int:
    """Bytes of operands that only the product still needs when other kernels run in front of `total`."""
    waiting: dict[int, int] = {}
    for operand in product.all_input_nodes:
        key = storage_key(operand)
        if key is not None and base_of(operand).name not in held and last[key] < order[total]:
            waiting[key] = storage_nbytes(operand.meta["val"])
    return sum(waiting.values())


def _last_uses(graph: fx.Graph, order: dict[fx.Node, int]) -> dict[int, int]:
    """By storage, where its last reader stands."""
    last: dict[int, int] = {}
    for node in graph.nodes:
        key = storage_key(node)
        if key is not None:
            last[key] = max([last.get(key, 0), *(order[user] for user in node.users)])
    return last


def _read_through_view(graph: fx.Graph, node: fx.Node) -> fx.Node:
    (user,) = node.users
    with graph.inserting_after(node):
        view = same_view(graph, node, node)
    user.replace_input_with(node, view)
    return view
