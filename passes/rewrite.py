"""Rewrite a forward/backward pair so that chosen tensors are saved encoded.

`rewrite(fw, bw, encodings, …)` puts each encode right after its producer and each decode right before its first
consumer (measured: this is where the peak is won or lost), replaces the saved value by its payload on both sides in
the same order, and replays the views that the backward reads of one storage. Edits both graphs in place.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx
from torch.fx.experimental.proxy_tensor import make_fx

from fxcompress import compat
from fxcompress.codecs.order import from_rows, to_rows
from fxcompress.passes.choose import Encoding
from fxcompress.passes.find_saved import outputs, placeholders
from fxcompress.passes.splice import (
    PREFIX,
    add_placeholder,
    add_saved_size,
    call_outlined,
    copy_chain,
    inline,
    set_outputs,
)

Templates = dict[object, tuple[int, fx.GraphModule, fx.GraphModule]]
"""By `_key`: a number, the encode and the decode."""


def rewrite(
    fw: fx.GraphModule,
    bw: fx.GraphModule,
    encodings: Sequence[Encoding],
    *,
    decompositions: object | None,
    seed: int,
    outline: bool = False,
) -> None:
    """Save the encoded storages instead of the tensors.

    Args:
        fw, bw: the pair, edited in place.
        encodings: what `choose` decided.
        decompositions: table under which new nodes are traced; the inner compiler's own, or None.
        seed: of the rounding noise; together with the encoding's number it names the tensor in the noise.
        outline: whether equal encodes and equal decodes are one subgraph with many calls, which costs the inner
            compiler less, and on a GPU the fusion with their neighbours.
    """
    templates: Templates = {}
    payloads: dict[int, list[fx.Node]] = {}
    encoded: set[int] = set()
    for index, encoding in enumerate(encodings):
        pairs = encoding.storage.members
        known = len(templates)
        number, encode, decode = _traced(encoding, templates, decompositions)
        fresh = len(templates) > known
        shared = number if outline and _outlined(encoding) else None
        parts = _insert_encode(fw, encoding, encode, index, seed, fresh, shared)
        _insert_decode(fw, bw, encoding, decode, parts, fresh, shared)
        payloads[pairs[0].position] = parts
        encoded.update(pair.position for pair in pairs)
    _save(fw, payloads, encoded)
    # Views that are no longer saved: an interpreter would hold what they view to the end of the forward.
    fw.graph.eliminate_dead_code()
    for gm in (fw, bw):
        gm.graph.lint()
        gm.recompile()


def _traced(
    encoding: Encoding, templates: Templates, decompositions: object | None
) -> tuple[int, fx.GraphModule, fx.GraphModule]:
    """Encode and decode of one encoding as graphs; equal ones are traced once and have one number."""
    key = _key(encoding)
    if key not in templates:
        traced = _trace(encoding, encoding.source.meta["val"], _is_static(encoding), decompositions)
        templates[key] = (len(templates), *traced)
    return templates[key]


def _key(encoding: Encoding) -> object:
    """Equal for encodings that one pair of graphs serves; symbolic sizes are nobody else's."""
    val = encoding.source.meta["val"]
    if not _is_static(encoding):
        return encoding.source
    return (encoding.codec, encoding.order.dims, tuple(val.shape), tuple(val.stride()), val.dtype, val.device)


def _is_static(encoding: Encoding) -> bool:
    val = encoding.source.meta["val"]
    return all(isinstance(size, int) for size in (*val.shape, *val.stride()))


def _outlined(encoding: Encoding) -> bool:
    """Floats on a CPU. Masks are better fused with what makes and reads them: as tensors they are 8 times as large."""
    val = encoding.source.meta["val"]
    return _is_static(encoding) and val.device.type == "cpu" and encoding.codec.contract.kind != "exact"


def _trace(
    encoding: Encoding, val: torch.Tensor, static: bool, decompositions: object | None
) -> tuple[fx.GraphModule, fx.GraphModule]:
    codec, order = encoding.codec, encoding.order
    mode = compat.fake_mode_of([val])
    tracing: dict[str, Any] = {"tracing_mode": "real" if static else "symbolic", "decomposition_table": decompositions}

    def encode(x: torch.Tensor, salt: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return codec.encode(to_rows(x, order), salt)

    def decode(*parts: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (from_rows(codec.decode(parts, order.cols, val.dtype), order),)

    with mode, torch.no_grad():
        salt = torch.full((), 0, dtype=torch.int64, device=val.device)
        packed = make_fx(encode, **tracing)(val, salt)
        parts = [node.meta["val"] for node in outputs(packed) if isinstance(node, fx.Node)]
        unpacked = make_fx(decode, **tracing)(*parts)
    packed, unpacked = _clean(packed), _clean(unpacked)
    _, noise = placeholders(packed)
    if not noise.users:
        packed.graph.erase_node(noise)
        packed.recompile()
    return packed, unpacked


def _clean(gm: fx.GraphModule) -> fx.GraphModule:
    """Without dead code and without the aliases that tracing puts behind reinterpreted bits: nodes cost time."""
    for node in gm.graph.find_nodes(op="call_function", target=torch.ops.aten.alias.default):
        node.replace_all_uses_with(node.args[0])
    gm.graph.eliminate_dead_code()
    return gm


def tensor_salt(seed: int, index: int) -> int:
    """32 bits that name the `index`-th encoded tensor in the rounding noise."""
    return (seed * 0x9E3779B1 + index * 0x85EBCA77) & 0xFFFFFFFF


def _insert_encode(
    fw: fx.GraphModule,
    encoding: Encoding,
    template: fx.GraphModule,
    index: int,
    seed: int,
    fresh: bool,
    shared: int | None,
) -> list[fx.Node]:
    source = encoding.source
    val = source.meta["val"]
    fields = encoding.codec.fields(encoding.order.cols, val.dtype)
    names = [f"{PREFIX}{index}_{field.name}" for field in fields]
    anchor = source
    while anchor.next.op == "placeholder":
        anchor = anchor.next
    with fw.graph.inserting_before(anchor.next):
        arguments = [source]
        for noise in placeholders(template)[1:]:
            salt = fw.graph.create_node(
                "call_function",
                torch.ops.aten.full.default,
                ([], tensor_salt(seed, index)),
                {"dtype": torch.int64, "layout": torch.strided, "device": val.device, "pin_memory": False},
                name=f"{PREFIX}{index}_salt",
            )
            salt.meta["val"] = noise.meta["val"]
            arguments.append(salt)
        if shared is not None:
            return call_outlined(fw, template, f"{PREFIX}encode_{shared}", arguments, names)
        return inline(fw.graph, template, arguments, names, fresh=fresh)


def _insert_decode(
    fw: fx.GraphModule,
    bw: fx.GraphModule,
    encoding: Encoding,
    template: fx.GraphModule,
    parts: list[fx.Node],
    fresh: bool,
    shared: int | None,
) -> None:
    pairs = encoding.storage.members
    arrived = [add_placeholder(bw, part, part.name, pairs[0].bw) for part in parts]
    order = {node: i for i, node in enumerate(bw.graph.nodes)}
    users = [user for pair in pairs for user in pair.bw.users]
    first = min(users, key=lambda user: order.get(user, math.inf))
    env: dict[fx.Node, fx.Node] = {}
    with bw.graph.inserting_before(first):
        if shared is not None:
            (decoded,) = call_outlined(bw, template, f"{PREFIX}decode_{shared}", arrived, [None])
        else:
            (decoded,) = inline(bw.graph, template, arrived, [None], fresh=fresh)
        env[encoding.source] = decoded
        for pair, chain in zip(pairs, encoding.storage.views, strict=True):
            if encoding.source is encoding.storage.root and chain is not None:
                env.update({size: add_saved_size(fw, bw, size) for size in _sizes_of(chain) if size not in env})
                copy_chain(bw.graph, chain, env)
            pair.bw.replace_all_uses_with(env[pair.fw])
    for pair in pairs:
        bw.graph.erase_node(pair.bw)


def _sizes_of(chain: Sequence[fx.Node]) -> list[fx.Node]:
    """Symbolic sizes that the views of a chain take as arguments."""
    return [arg for node in chain for arg in node.all_input_nodes if isinstance(arg.meta.get("val"), torch.SymInt)]


def _save(fw: fx.GraphModule, payloads: dict[int, list[fx.Node]], encoded: set[int]) -> None:
    """Put each payload at the output position of its storage's first view, and nothing at those of the others."""
    saved: list[object] = []
    for position, out in enumerate(outputs(fw)):
        saved.extend(payloads.get(position, []) if position in encoded else [out])
    set_outputs(fw, saved)
