"""Group saved tensors by the storage they live in, for bytes belong to storages and not to tensors.

`find_storages(fw, pairs, …)` returns one `Storage` per distinct storage among the saved tensors, with the node that
made it and who else holds it. The grouping follows the fake tensors' own storages, and the root is the first node of
the graph with that storage. Read-only.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import fx

from fxcompress.passes.find_saved import SavedPair, outputs, placeholders


@dataclass(frozen=True, slots=True)
class Storage:
    """One storage with all saved tensors that view it.

    `held_by` is `input` or `output` if the caller keeps it alive anyway, else empty. `views` maps a member's forward
    node to the nodes that lead from the root to it, root excluded; None where the way is not a chain of views.
    """

    root: fx.Node
    members: tuple[SavedPair, ...]
    held_by: str
    nbytes: int
    views: tuple[tuple[fx.Node, ...] | None, ...]


def storage_key(node: fx.Node) -> int | None:
    """Identity of the storage behind a node's value; None if it has none (tuples, sizes, subclasses)."""
    val = node.meta.get("val")
    if not isinstance(val, torch.Tensor) or val.layout is not torch.strided:
        return None
    try:
        return int(val.untyped_storage()._cdata)
    except NotImplementedError:
        return None


def hint(size: int | torch.SymInt) -> int:
    """The number a size stands for: itself, or the value seen when it was traced."""
    if isinstance(size, torch.SymInt):
        return int(size.node.hint) if size.node.has_hint() else 1
    return size


def elements_in(sizes: Iterable[int | torch.SymInt]) -> int:
    """Elements of a tensor of these sizes; symbols count by their hint."""
    return math.prod(map(hint, sizes))


def is_static(val: torch.Tensor) -> bool:
    """Whether no size and no stride is a symbol."""
    return all(isinstance(size, int) for size in (*val.shape, *val.stride()))


def nbytes_of(val: torch.Tensor) -> int:
    """Bytes of the elements that a tensor addresses, an expanded dimension counted once."""
    numel = val.element_size()
    for size, stride in zip(val.shape, val.stride(), strict=True):
        if not (isinstance(stride, int) and stride == 0):
            numel *= hint(size)
    return numel


def numel_of(node: fx.Node) -> int:
    """Elements that a node's tensor addresses, an expanded dimension counted once; 0 for anything else."""
    val = node.meta.get("val")
    return nbytes_of(val) // val.element_size() if isinstance(val, torch.Tensor) else 0


def storage_nbytes(val: torch.Tensor) -> int:
    return hint(val.untyped_storage().nbytes())


def find_storages(fw: fx.GraphModule, pairs: list[SavedPair], num_fwd_outputs: int) -> list[Storage]:
    """Group `pairs` by storage, in the order of their first member."""
    roots: dict[int, fx.Node] = {}
    for node in fw.graph.nodes:
        key = storage_key(node)
        if key is not None:
            roots.setdefault(key, node)
    inputs = {storage_key(node) for node in placeholders(fw)}
    user_outputs = {storage_key(out) for out in outputs(fw)[:num_fwd_outputs] if isinstance(out, fx.Node)}
    groups: dict[object, list[SavedPair]] = {}
    for pair in pairs:
        key = storage_key(pair.fw)
        groups.setdefault(pair.fw if key is None else key, []).append(pair)
    return [_storage(key, members, roots, inputs, user_outputs) for key, members in groups.items()]


def _storage(
    key: object,
    members: list[SavedPair],
    roots: dict[int, fx.Node],
    inputs: set[int | None],
    user_outputs: set[int | None],
) -> Storage:
    if not isinstance(key, int):
        node = members[0].fw
        return Storage(
            node, tuple(members), "input" if node.op == "placeholder" else "", nbytes_of(members[0].val), (None,)
        )
    root = roots[key]
    held_by = "input" if key in inputs else "output" if key in user_outputs else ""
    chains = tuple(_view_chain(root, pair.fw) for pair in members)
    return Storage(root, tuple(members), held_by, storage_nbytes(root.meta["val"]), chains)


def _view_chain(root: fx.Node, node: fx.Node) -> tuple[fx.Node, ...] | None:
    """Nodes from `root` (excluded) to `node`, each a view of the one before; None if they branch."""
    key = storage_key(root)
    chain: list[fx.Node] = []
    while node is not root:
        chain.append(node)
        sources = [arg for arg in node.all_input_nodes if storage_key(arg) == key or _is_tuple(arg)]
        if len(sources) != 1 or node.op != "call_function":
            return None
        node = sources[0]
    return tuple(reversed(chain))


def _is_tuple(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), (tuple, list))


def distinct_nbytes(nodes: list[fx.Node]) -> int:
    """Bytes of the distinct storages behind `nodes`; storages of graph inputs are the caller's and do not count."""
    if not nodes:
        return 0
    held = {storage_key(node) for node in nodes[0].graph.find_nodes(op="placeholder")}
    sizes = {storage_key(node): storage_nbytes(node.meta["val"]) for node in nodes if storage_key(node) is not None}
    return sum(size for key, size in sizes.items() if key not in held)
