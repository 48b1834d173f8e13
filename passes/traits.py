"""What the memory model asks of a node again and again, whatever the graph is cut into: asked once. Read-only."""

from bisect import bisect_right
from dataclasses import dataclass

import torch
from torch import fx

from fxcompress.compat import OpOverload
from fxcompress.compat.tracing import storage_id
from fxcompress.passes import devices
from fxcompress.passes.alias import storage_key, storage_nbytes
from fxcompress.passes.join_steps import Buffer
from fxcompress.passes.ops import REDUCTIONS, is_attention, is_view, op_name
from fxcompress.passes.same_place import readers_of

_OPAQUE = frozenset(
    "mm bmm addmm baddbmm convolution convolution_backward sort topk _scaled_mm max_pool2d_with_indices_backward "
    "nonzero cumsum embedding_dense_backward native_layer_norm native_batch_norm native_layer_norm_backward".split()
)
SCATTERS = frozenset(
    "scatter scatter_add scatter_reduce index_put index_put_ _unsafe_index_put "
    "_unsafe_masked_index_put_accumulate".split()
)
"""Kernels that Inductor generates, but never computes where their result is read."""

_NUMBER = (int, float)
_HEAVY = frozenset("exp log log10 log1p log2 sigmoid tanh".split())
"""What Inductor does not compute twice on a CPU."""
Buffers = tuple[tuple[Buffer, int], ...]
"""Storages with their bytes."""


@dataclass(frozen=True, slots=True)
class Traits:
    """`buffers`: the storage behind the node's tensor. `results`: those of every element of its tuple, too.

    `opaque`: Inductor calls its kernel and does not generate it. `pointwise`: Inductor may compute it where it is read.
    `operations`: what that takes, its tensors at hand. `heavy`: not to be done twice on a CPU.
    """

    inputs: tuple[fx.Node, ...]
    buffers: Buffers
    results: Buffers
    keys: frozenset[Buffer]
    result_keys: frozenset[Buffer]
    view: bool
    opaque: bool
    scatters: bool
    pointwise: bool
    operations: int
    heavy: bool


def traits_of(node: fx.Node) -> Traits:
    """Ask."""
    # Elements of a tuple may share a storage, as those of a split do.
    own = tuple(buffers_of(node))
    items = _items_of(node)
    results = own if items is None else tuple({storage_id(item): storage_nbytes(item) for item in items}.items())
    keys = frozenset(key for key, _ in own)
    view, opaque, name = is_view(node), is_opaque(node), op_name(node)
    return Traits(
        tuple(node.all_input_nodes),
        own,
        results,
        keys,
        keys if items is None else frozenset(key for key, _ in results),
        view,
        opaque,
        name in SCATTERS,
        node.op == "call_function" and not (view or opaque or name in REDUCTIONS or name in SCATTERS),
        1 + sum(isinstance(arg, _NUMBER) for arg in node.args),
        name in _HEAVY,
    )


def buffers_of(node: fx.Node) -> list[tuple[Buffer, int]]:
    """The storage behind a node's tensor and its bytes; nothing for sizes, tuples and subclasses."""
    key = storage_key(node)
    return [] if key is None else [(key, storage_nbytes(node.meta["val"]))]


def _items_of(node: fx.Node) -> list[torch.Tensor] | None:
    """The tensors of a node's tuple; None where its value is a tensor."""
    val = node.meta.get("val")
    if isinstance(val, torch.Tensor):
        return None
    return [item for item in val if isinstance(item, torch.Tensor)] if isinstance(val, (tuple, list)) else []


def is_opaque(node: fx.Node) -> bool:
    """Kernels that Inductor calls and does not generate: they read and write memory."""
    target = node.target
    if not isinstance(target, OpOverload) or target.namespace not in ("aten", "prims", "inductor_prims"):
        return True
    return op_name(node) in _OPAQUE or is_attention(node) or _is_called_scatter(node)


def _is_called_scatter(node: fx.Node) -> bool:
    """On a CPU, Inductor leaves additions at given places to ATen if several threads would write at once."""
    if op_name(node) not in ("scatter_add", "scatter_reduce") or torch.get_num_threads() == 1:
        return False
    return devices.is_on_cpu(node.meta.get("val"))


def is_read_behind_a_call(source: fx.Node, order: dict[fx.Node, int], calls: list[int]) -> bool:
    """Whether a kernel of Inductor's reads it after the first library call that follows it; `calls` rise."""
    behind = bisect_right(calls, order[source])
    first = calls[behind] if behind < len(calls) else len(order)
    return any(order[reader] > first and not is_opaque(reader) for reader in readers_of(source))
