"""Let Inductor write a sum of gradients to memory once, where it would otherwise keep all its terms for later readers.

The gradient of a residual stream grows by one term per block. Inductor computes such a sum anew wherever it is read, up
to some number of terms, and until then each of them stays in memory: in a ResNet's first stage, the largest tensors of
the step. `find_sums` names sums that are read again after a library's kernel and whose terms would wait for that;
`store_sums` marks those of a backward. Exact, but for where a compiler that fuses rounds. For GPUs.
"""

import operator
from collections.abc import Callable, Set

import torch
from torch import fx

from fxcompress import compat
from fxcompress.codecs import lowering
from fxcompress.passes.alias import storage_nbytes
from fxcompress.passes.follow import joined
from fxcompress.passes.ops import is_real, is_view
from fxcompress.passes.traits import is_opaque, is_read_behind_a_call, traits_of

_TERMS = 2


def store_sums(bw: fx.GraphModule) -> tuple[str, ...]:
    """Mark the sums; returns their names.

    Args:
        bw: the backward, before it is decided what is encoded: decisions depend on where the peak is.
    """
    found = find_sums(bw.graph)
    for node in found:
        compat.store_in_memory(node)
    return tuple(node.name for node in found)


def find_sums(graph: fx.Graph, members_of: Callable[[], Set[fx.Node]] | None = None) -> list[fx.Node]:
    """The sums, in the graph's order.

    Args:
        graph: a backward or a joint graph.
        members_of: tells the nodes that sums may be among, and is only asked on a GPU; all if None.
    """
    if not any(_is_wanted(node) for node in graph.nodes):
        return []
    members = None if members_of is None else members_of()
    order = {node: i for i, node in enumerate(graph.nodes)}
    calls = [order[node] for node in graph.nodes if _is_call(node)]
    terms: dict[fx.Node, frozenset[fx.Node]] = {}
    found = []
    for node in graph.nodes:
        if node.op != "call_function" or (members is not None and node not in members):
            continue
        if _is_call(node) or (node.target is operator.getitem and _is_call(node.all_input_nodes[0])):
            terms[node] = frozenset({node})
            continue
        if not (is_view(node) or traits_of(node).pointwise):
            continue
        terms[node] = joined(terms, node.all_input_nodes)
        if not is_view(node) and _is_large_sum(node, terms[node]) and is_read_behind_a_call(node, order, calls):
            terms[node] = frozenset({node})
            found.append(node)
    return found


def _is_call(node: fx.Node) -> bool:
    """Whether it is a library's kernel; picking one of several results runs nothing."""
    return node.op == "call_function" and node.target is not operator.getitem and is_opaque(node)


def _is_wanted(node: fx.Node) -> bool:
    """Whether it is a tensor of numbers on a GPU."""
    return is_real(node) and lowering.wanted(node.meta["val"])


def _is_large_sum(node: fx.Node, terms: frozenset[fx.Node]) -> bool:
    """Whether its terms, made by libraries or stored, take as much memory as several of it."""
    if not _is_wanted(node):
        return False
    val = node.meta["val"]
    held = [term.meta["val"] for term in terms if isinstance(term.meta["val"], torch.Tensor)]
    return len(held) >= _TERMS and sum(map(storage_nbytes, held)) >= _TERMS * storage_nbytes(val)
