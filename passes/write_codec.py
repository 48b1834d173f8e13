"""Write one tensor's encode and decode into graphs, as its encoding's lowering says.

`ATEN` and `TRITON` copy what is traced once for all tensors alike, so that the inner compiler fuses it with what stands
around it. `OPERATOR` is one call each way (`codecs.operators`), which costs the inner compiler next to nothing.
"""

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.fx.experimental.proxy_tensor import make_fx

from fxcompress import compat
from fxcompress.codecs import lowering
from fxcompress.codecs.operators import describe
from fxcompress.codecs.order import MemoryOrder, from_rows, to_rows
from fxcompress.passes.choose import Encoding
from fxcompress.passes.find_saved import outputs, placeholders
from fxcompress.passes.splice import inline, refresh_values
from fxcompress.plan import OPERATOR, TRITON


@dataclass(frozen=True, slots=True)
class Template:
    """A traced encode and decode; `fresh` if no copy has taken over their fake values yet."""

    encode: fx.GraphModule
    decode: fx.GraphModule
    fresh: bool = True


Templates = dict[object, Template]


def take_template(encoding: Encoding, templates: Templates, decompositions: object | None) -> Template | None:
    """The template that `encoding` is copied from, traced if `templates` has none; None if it is called, not copied."""
    if encoding.lowering == OPERATOR:
        return None
    key = _key(encoding)
    if key in templates:
        return templates[key]
    traced = _trace(encoding, decompositions)
    templates[key] = Template(*traced, fresh=False)
    return Template(*traced)


def write_encode(
    graph: fx.Graph, encoding: Encoding, template: Template | None, names: Sequence[str], salt: int
) -> list[fx.Node]:
    """Encode the node that `encoding` stores, at the graph's insertion point; returns payload nodes of these names.

    `salt` names the tensor in the rounding noise.
    """
    if template is None:
        return _call_encode(graph, encoding, names, salt)
    arguments = [encoding.source]
    for noise in placeholders(template.encode)[1:]:
        how = {"dtype": torch.int64, "layout": torch.strided, "device": noise.meta["val"].device, "pin_memory": False}
        number = graph.create_node("call_function", torch.ops.aten.full.default, ([], salt), how)
        number.meta["val"] = noise.meta["val"]
        arguments.append(number)
    parts = inline(graph, template.encode, arguments, names, fresh=template.fresh)
    if encoding.lowering == TRITON:
        lowering.set_salt(parts[0].all_input_nodes[0], salt)
    return parts


def write_decode(graph: fx.Graph, encoding: Encoding, template: Template | None, parts: Sequence[fx.Node]) -> fx.Node:
    """Decode a payload at the graph's insertion point; the result lies in memory as what was encoded."""
    if template is None:
        return _call_decode(graph, encoding, parts)
    (decoded,) = inline(graph, template.decode, parts, [None], fresh=template.fresh)
    return decoded


def _call_encode(graph: fx.Graph, encoding: Encoding, names: Sequence[str], salt: int) -> list[fx.Node]:
    order = encoding.order
    ordered = _permute(graph, _lying(graph, encoding.source, order), order.dims)
    arguments = (ordered, len(order.lead), describe(encoding.codec), salt)
    call = _call(graph, torch.ops.fxcompress.encode.default, arguments)
    return [_call(graph, operator.getitem, (call, position), name) for position, name in enumerate(names)]


def _call_decode(graph: fx.Graph, encoding: Encoding, parts: Sequence[fx.Node]) -> fx.Node:
    order, dtype = encoding.order, encoding.source.meta["val"].dtype
    arguments = (list(parts), list(order.tail), describe(encoding.codec), dtype)
    rows = _call(graph, torch.ops.fxcompress.decode.default, arguments)
    return _permute(graph, rows, _inverse(order))


def _lying(graph: fx.Graph, source: fx.Node, order: MemoryOrder) -> fx.Node:
    """`source`, asked for as `order` says where the graph's strides say otherwise: the inner compiler has it so."""
    val = source.meta["val"]
    permuted = val.permute(order.dims)
    if permuted.is_contiguous():
        return source
    strides = torch.empty(permuted.shape, device="meta").permute(_inverse(order)).stride()
    return _call(graph, compat.force_stride_order(), (source, list(strides)))


def _inverse(order: MemoryOrder) -> list[int]:
    return [order.dims.index(dim) for dim in range(len(order.dims))]


def _permute(graph: fx.Graph, node: fx.Node, dims: Sequence[int]) -> fx.Node:
    if list(dims) == sorted(dims):
        return node
    return _call(graph, torch.ops.aten.permute.default, (node, list(dims)))


def _call(graph: fx.Graph, target: Callable[..., Any], arguments: tuple[Any, ...], name: str | None = None) -> fx.Node:
    node = graph.create_node("call_function", target, arguments, name=name)
    refresh_values([node])
    return node


def _key(encoding: Encoding) -> object:
    """Equal for encodings that one template serves; symbolic sizes are nobody else's."""
    val = encoding.source.meta["val"]
    if not _is_static(val):
        return encoding.source
    place = (tuple(val.shape), tuple(val.stride()), val.dtype, val.device)
    return (encoding.codec, encoding.lowering, encoding.order.dims, *place)


def _is_static(val: torch.Tensor) -> bool:
    return all(isinstance(size, int) for size in (*val.shape, *val.stride()))


def _trace(encoding: Encoding, decompositions: object | None) -> tuple[fx.GraphModule, fx.GraphModule]:
    codec, order, val = encoding.codec, encoding.order, encoding.source.meta["val"]
    mode = compat.fake_mode_of([val])
    how: dict[str, Any] = {
        "tracing_mode": "real" if _is_static(val) else "symbolic",
        "decomposition_table": decompositions,
    }
    kernels = lowering.find(codec, order.cols, val.dtype) if encoding.lowering == TRITON else None

    def encode(x: torch.Tensor, salt: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if kernels is not None:
            # Its salt is a number, which every copy of the graph gets for itself.
            return kernels.encode(to_rows(x, order), 0)
        return codec.encode(to_rows(x, order), salt)

    def decode(*parts: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (from_rows(codec.decode(parts, order.cols, val.dtype), order),)

    with mode, torch.no_grad():
        salt = torch.full((), 0, dtype=torch.int64, device=val.device)
        packed = make_fx(encode, **how)(val, salt)
        parts = [node.meta["val"] for node in outputs(packed) if isinstance(node, fx.Node)]
        unpacked = make_fx(decode, **how)(*parts)
    lowering.share_outputs(packed)
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
