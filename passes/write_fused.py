"""Write the kernels of `fuse` into the forward: one node each that computes a chain and encodes.

`write_fused` puts the kernel behind its last input and returns the payloads; `redirect` then lets everybody read what
the kernel stores. In between the old nodes stand, for what is derived from them is still to be copied.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import fx
from torch.fx.experimental.proxy_tensor import make_fx

from fxcompress import compat
from fxcompress.codecs import lowering
from fxcompress.codecs.order import MemoryOrder, from_rows, memory_order, to_rows
from fxcompress.passes.choose import Encoding
from fxcompress.passes.fuse import Fusion
from fxcompress.passes.splice import inline
from fxcompress.passes.write_codec import Templates, clean


def write_fused(
    graph: fx.Graph,
    fusion: Fusion,
    encodings: Sequence[Encoding],
    labels: Mapping[int, tuple[Sequence[str], int]],
    standing: Mapping[fx.Node, fx.Node],
    templates: Templates,
    decompositions: object,
) -> tuple[dict[int, list[fx.Node]], dict[fx.Node, fx.Node]]:
    """Insert the kernel of one chain.

    Args:
        graph: the forward.
        fusion: what it computes.
        encodings: all there are; those that it holds are named by position, here and below.
        labels: names of the payload nodes of each, and that of its tensor in the rounding noise.
        standing: what stands for the nodes that kernels written so far store.
        templates: what has been traced so far; receives what is traced here.
        decompositions: table under which it is traced.

    Returns:
        The payload nodes of each encoding, and the node that stands for each stored one.
    """
    held = [encodings[position] for position in fusion.encoded]
    key = (fusion.chain, tuple(e.codec for e in held), *map(_place, (*fusion.inputs, *fusion.stored)))
    fresh = key not in templates
    if fresh:
        templates[key] = _trace(fusion, held, decompositions)
    wanted = [f"fused_{node.name}" for node in fusion.stored]
    wanted += [name for position in fusion.encoded for name in labels[position][0]]
    inputs = [standing.get(node, node) for node in fusion.inputs]
    anchor = max(inputs)
    while anchor.next.op == "placeholder":
        anchor = anchor.next
    with graph.inserting_before(anchor.next):
        made = inline(graph, templates[key], inputs, wanted, fresh=fresh)
    results, parts = made[: len(fusion.stored)], made[len(fusion.stored) :]
    (kernel,) = parts[0].all_input_nodes
    payloads: dict[int, list[fx.Node]] = {}
    for number, at in enumerate(fusion.encoded):
        names, salt = labels[at]
        lowering.set_salt(kernel, salt, number)
        payloads[at], parts = parts[: len(names)], parts[len(names) :]
    return payloads, dict(zip(fusion.stored, results, strict=True))


def redirect(graph: fx.Graph, results: Mapping[fx.Node, fx.Node]) -> None:
    """Let the readers of each stored value read what the kernel wrote; the old nodes are dead then, and with them the
    readers that stand in front of the kernel."""
    position = {node: i for i, node in enumerate(graph.nodes)}
    for node, result in results.items():
        node.replace_all_uses_with(result, delete_user_cb=partial(_is_behind, position, result))
    # Views of the old nodes were copied with their storages.
    compat.move_storages(graph, [(node.meta["val"], result.meta["val"]) for node, result in results.items()])


def _is_behind(position: Mapping[fx.Node, int], first: fx.Node, second: fx.Node) -> bool:
    return position[second] > position[first]


def _trace(fusion: Fusion, held: Sequence[Encoding], decompositions: object) -> fx.GraphModule:
    vals = [node.meta["val"] for node in fusion.inputs]
    stored = [node.meta["val"] for node in fusion.stored]
    codecs = [encoding.codec for encoding in held[: len(fusion.chain.encoded)]]

    def compute(*inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        rows = [to_rows(x, _order(x)) for x in inputs]
        made = lowering.encode_chain(fusion.chain, codecs, rows, [val.dtype for val in stored])
        results = [from_rows(flat, _order(val)) for flat, val in zip(made, stored, strict=False)]
        return (*results, *made[len(stored) :])

    how: dict[str, Any] = {"tracing_mode": "real", "decomposition_table": decompositions}
    with compat.fake_mode_of(vals), torch.no_grad():
        traced = make_fx(compute, **how)(*vals)
    lowering.share_outputs(traced)
    return clean(traced)


def _order(x: torch.Tensor) -> MemoryOrder:
    order = memory_order(x)
    assert order is not None
    return order


def _place(node: fx.Node) -> object:
    val = node.meta["val"]
    return tuple(val.shape), tuple(val.stride()), val.storage_offset(), val.dtype, val.device
