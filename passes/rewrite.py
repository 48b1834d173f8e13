"""Rewrite a forward/backward pair so that chosen tensors are saved encoded.

`rewrite(fw, bw, encodings, …)` puts each encode right after its producer and each decode right before its first
consumer (measured: this is where the peak is won or lost), replaces the saved value by its payload on both sides in
the same order, and replays the views that the backward reads of one storage. Edits both graphs in place.
"""

from collections.abc import Sequence

import torch
from torch import fx

from fxcompress.passes.choose import Encoding
from fxcompress.passes.find_saved import outputs
from fxcompress.passes.fuse import Fusion
from fxcompress.passes.liveness import is_fused_away
from fxcompress.passes.phases import phase_of
from fxcompress.passes.splice import PREFIX, add_placeholder, add_saved_size, copy_chain, place_behind, set_outputs
from fxcompress.passes.write_codec import Templates, sizes_to_save, write_decode, write_encode
from fxcompress.passes.write_fused import redirect, write_fused

DECODES = "decodes"
"""`node.meta["actcomp"]` is (DECODES, name) where a node decodes the saved tensor of that name."""


def rewrite(
    fw: fx.GraphModule,
    bw: fx.GraphModule,
    encodings: Sequence[Encoding],
    fusions: Sequence[Fusion] = (),
    *,
    decompositions: object | None,
    seed: int,
) -> dict[fx.Node, fx.Node]:
    """Save the encoded storages instead of the tensors.

    Args:
        fw, bw: the pair, edited in place.
        encodings: what `choose` decided.
        fusions: chains whose kernels also encode some of them.
        decompositions: table under which new nodes are traced; the inner compiler's own, or None.
        seed: of the rounding noise; together with the encoding's number it names the tensor in the noise.

    Returns:
        What stands for forward nodes that the kernels of `fusions` store now.
    """
    templates: Templates = {}
    backward = phase_of(bw)
    payloads: dict[int, list[fx.Node]] = {}
    encoded: set[int] = set()
    fused, results = _insert_fusions(fw, encodings, fusions, seed, templates, decompositions)
    for index, encoding in enumerate(encodings):
        pairs = encoding.storage.members
        fuses = all(is_fused_away(pair.bw, backward) for pair in pairs)
        parts = fused.get(index) or _insert_encode(fw, encoding, index, seed, templates, decompositions)
        _insert_decode(fw, bw, encoding, parts, templates, decompositions, fuses=fuses)
        payloads[pairs[0].position] = parts
        encoded.update(pair.position for pair in pairs)
    redirect(fw.graph, results)
    _save(fw, payloads, encoded)
    # Views that are no longer saved: an interpreter would hold what they view to the end of the forward.
    fw.graph.eliminate_dead_code()
    for gm in (fw, bw):
        gm.recompile()
    return results


def decoding_nodes(bw: fx.GraphModule) -> dict[str, fx.Node]:
    """The nodes of a rewritten backward that decode, by the name of the saved tensor (a storage's first)."""
    marks = {node: node.meta.get("actcomp") for node in bw.graph.nodes}
    return {mark[1]: node for node, mark in marks.items() if isinstance(mark, tuple) and mark[0] == DECODES}


def tensor_salt(seed: int, index: int) -> int:
    """32 bits that name the `index`-th encoded tensor in the rounding noise."""
    return (seed * 0x9E3779B1 + index * 0x85EBCA77) & 0xFFFFFFFF


def _insert_fusions(
    fw: fx.GraphModule,
    encodings: Sequence[Encoding],
    fusions: Sequence[Fusion],
    seed: int,
    templates: Templates,
    decompositions: object,
) -> tuple[dict[int, list[fx.Node]], dict[fx.Node, fx.Node]]:
    """Write the kernels; returns the payloads of what they encode, and what stands for what they store."""
    payloads: dict[int, list[fx.Node]] = {}
    results: dict[fx.Node, fx.Node] = {}
    for fusion in fusions:
        labels = {
            index: (_payload_names(encodings[index], index), tensor_salt(seed, index)) for index in fusion.encoded
        }
        parts, made = write_fused(fw.graph, fusion, encodings, labels, results, templates, decompositions)
        payloads.update(parts)
        results.update(made)
    return payloads, results


def _insert_encode(
    fw: fx.GraphModule, encoding: Encoding, index: int, seed: int, templates: Templates, decompositions: object
) -> list[fx.Node]:
    with fw.graph.inserting_before(place_behind(encoding.source)):
        names = _payload_names(encoding, index)
        return write_encode(fw.graph, encoding, names, tensor_salt(seed, index), templates, decompositions)


def _payload_names(encoding: Encoding, index: int) -> list[str]:
    fields = encoding.codec.fields(encoding.order.cols, encoding.source.meta["val"].dtype)
    return [f"{PREFIX}{index}_{field.name}" for field in fields]


def _insert_decode(
    fw: fx.GraphModule,
    bw: fx.GraphModule,
    encoding: Encoding,
    parts: list[fx.Node],
    templates: Templates,
    decompositions: object,
    *,
    fuses: bool,
) -> None:
    pairs = encoding.storage.members
    arrived = [add_placeholder(bw, part, part.name, pairs[0].bw) for part in parts]
    sizes = [add_saved_size(fw, bw, size) for size in _take_sizes(fw, encoding)]
    first = min(user for pair in pairs for user in pair.bw.users)
    env: dict[fx.Node, fx.Node] = {}
    with bw.graph.inserting_before(first):
        decoded = write_decode(bw.graph, encoding, arrived, sizes, templates, decompositions, fuses=fuses)
        env[encoding.source] = decoded
        decoded.meta["actcomp"] = (DECODES, pairs[0].bw.name)
        for pair, chain in zip(pairs, encoding.storage.views, strict=True):
            if encoding.source is encoding.storage.root and chain is not None:
                env.update({size: add_saved_size(fw, bw, size) for size in _sizes_of(chain) if size not in env})
                copy_chain(bw.graph, chain, env)
            pair.bw.replace_all_uses_with(env[pair.fw])
    for pair in pairs:
        bw.graph.erase_node(pair.bw)


def _take_sizes(fw: fx.GraphModule, encoding: Encoding) -> list[fx.Node]:
    """Symbolic sizes of what is encoded that the decode takes as arguments."""
    source = encoding.source
    taken = []
    with fw.graph.inserting_before(place_behind(source)):
        for dim in sizes_to_save(encoding):
            size = fw.graph.call_function(torch.ops.aten.sym_size.int, (source, dim))
            size.meta["val"] = source.meta["val"].shape[dim]
            taken.append(size)
    return taken


def _sizes_of(chain: Sequence[fx.Node]) -> list[fx.Node]:
    """Symbolic sizes that the views of a chain take as arguments."""
    return [arg for node in chain for arg in node.all_input_nodes if isinstance(arg.meta.get("val"), torch.SymInt)]


def _save(fw: fx.GraphModule, payloads: dict[int, list[fx.Node]], encoded: set[int]) -> None:
    """Put each payload at the output position of its storage's first view, and nothing at those of the others."""
    saved: list[object] = []
    for position, out in enumerate(outputs(fw)):
        saved.extend(payloads.get(position, []) if position in encoded else [out])
    set_outputs(fw, saved)
