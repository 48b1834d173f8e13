"""Write one tensor's encode and decode into graphs, as its encoding's lowering says.

`ATEN` and `TRITON` copy what is traced once for all tensors alike, so that the inner compiler fuses it with what stands
around it. `OPERATOR` is one call each way (`codecs.operators`), which costs the inner compiler next to nothing.
"""

import itertools
import operator
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import fx
from torch.fx.experimental.proxy_tensor import make_fx

from fxcompress import compat
from fxcompress.codecs import lowering
from fxcompress.codecs.operators import describe
from fxcompress.codecs.order import MemoryOrder, from_rows, is_dense, to_rows
from fxcompress.passes.alias import is_static
from fxcompress.passes.cast_last import cast_last
from fxcompress.passes.choose import Encoding
from fxcompress.passes.find_saved import placeholders
from fxcompress.passes.join_views import join_views
from fxcompress.passes.splice import PREFIX, inline, refresh_values
from fxcompress.plan import OPERATOR, TRITON

Templates = dict[object, fx.GraphModule]
"""Traced encodes and decodes, by what they depend on."""


def write_encode(
    graph: fx.Graph, encoding: Encoding, names: Sequence[str], salt: int, templates: Templates, decompositions: object
) -> list[fx.Node]:
    """Encode the node that `encoding` stores, at the graph's insertion point.

    Args:
        graph: the forward.
        encoding: what to encode, and how.
        names: of the payload nodes, in the codec's order.
        salt: names the tensor in the rounding noise.
        templates: what has been traced so far; receives what is traced here.
        decompositions: table under which it is traced.

    Returns:
        The payload nodes.
    """
    template, fresh = _take(encoding, _trace_encode, templates, decompositions)
    arguments = [encoding.source]
    for noise in placeholders(template)[1:]:
        how = {"dtype": torch.int64, "layout": torch.strided, "device": noise.meta["val"].device, "pin_memory": False}
        number = graph.create_node("call_function", torch.ops.aten.full.default, ([], salt), how, f"{PREFIX}salt")
        number.meta["val"] = noise.meta["val"]
        arguments.append(number)
    parts = inline(graph, template, arguments, names, fresh=fresh)
    if encoding.lowering == TRITON:
        lowering.set_salt(parts[0].all_input_nodes[0], salt)
    elif encoding.lowering == OPERATOR:
        call = parts[0].all_input_nodes[0]
        call.args = (*call.args[:-1], salt)
    return parts


def write_decode(
    graph: fx.Graph,
    encoding: Encoding,
    parts: Sequence[fx.Node],
    sizes: Sequence[fx.Node],
    templates: Templates,
    decompositions: object,
    *,
    fuses: bool,
) -> fx.Node:
    """Decode a payload at the graph's insertion point; the result lies in memory as what was encoded.

    Args:
        graph: the backward.
        encoding: what was encoded, and how.
        parts: the payload.
        sizes: the symbolic sizes that `sizes_to_save` asks for.
        templates, decompositions: as for `write_encode`.
        fuses: whether the inner compiler can compute the decode in all kernels that read it. Then it is copied,
            whatever the lowering, so that it never stands in memory.
    """
    trace = _write_decode_call if encoding.lowering == OPERATOR and not fuses else _trace_decode
    template, fresh = _take(encoding, trace, templates, decompositions)
    (decoded,) = inline(graph, template, [*parts, *sizes], [None], fresh=fresh)
    return decoded


def sizes_to_save(encoding: Encoding) -> list[int]:
    """The dimensions of what is encoded whose symbolic sizes a decode takes as arguments."""
    order = encoding.order
    sizes = zip(order.dims, order.filled, strict=True) if order.filled is not None else ()
    return [dim for dim, size in sizes if not isinstance(size, int)]


def _take(
    encoding: Encoding,
    trace: Callable[[Encoding, object], fx.GraphModule],
    templates: Templates,
    decompositions: object,
) -> tuple[fx.GraphModule, bool]:
    """What is traced for `encoding`, and whether nobody has copied it yet."""
    key = (trace, _key(encoding))
    fresh = key not in templates
    if fresh:
        templates[key] = trace(encoding, decompositions)
    return templates[key], fresh


def _write_encode_call(encoding: Encoding) -> fx.GraphModule:
    """The operator that encodes as a template; its salt, the last argument, is still to be set."""
    graph, order = fx.Graph(), encoding.order
    source = _placeholder(graph, "source", encoding.source.meta["val"])
    ordered = _permute(graph, _lying(graph, source, order), order.dims)
    arguments = (ordered, len(order.lead), describe(encoding.codec), 0)
    call = _call(graph, torch.ops.fxcompress.encode.default, arguments)
    parts = [_call(graph, operator.getitem, (call, position)) for position in range(len(call.meta["val"]))]
    graph.output(parts)
    return compat.make_graph_module(torch.nn.Module(), graph)


def _write_decode_call(encoding: Encoding, decompositions: object) -> fx.GraphModule:
    """The operator that decodes as a template."""
    graph, order, val = fx.Graph(), encoding.order, encoding.source.meta["val"]
    if order.filled is not None:
        return _trace_decode(encoding, decompositions, called=True)
    parts = [_placeholder(graph, f"part{i}", part) for i, part in enumerate(_empty_payload(encoding))]
    arguments = (parts, list(order.tail), describe(encoding.codec), val.dtype)
    rows = _call(graph, torch.ops.fxcompress.decode.default, arguments)
    graph.output((_permute(graph, rows, _inverse(order)),))
    return compat.make_graph_module(torch.nn.Module(), graph)


def _placeholder(graph: fx.Graph, name: str, val: torch.Tensor) -> fx.Node:
    node = graph.placeholder(name)
    node.meta["val"] = val
    return node


def _lying(graph: fx.Graph, source: fx.Node, order: MemoryOrder) -> fx.Node:
    """`source`, asked for as `order` says where the graph's strides say otherwise: the inner compiler has it so."""
    val = source.meta["val"]
    permuted = val.permute(order.dims)
    if permuted.is_contiguous():
        return source
    return _call(graph, compat.force_stride_order(), (source, _dense_strides(graph, source, order.dims)))


def _dense_strides(graph: fx.Graph, source: fx.Node, dims: Sequence[int]) -> list[int | fx.Node]:
    """The strides of `source` if its dimensions, from the slowest to the fastest, were `dims`; symbols as nodes."""
    strides: dict[int, int | fx.Node] = {dims[-1]: 1}
    for inner, outer in itertools.pairwise(reversed(dims)):
        size, stride = source.meta["val"].shape[inner], strides[inner]
        if not isinstance(size, int):
            size = _call(graph, torch.ops.aten.sym_size.int, (source, inner))
        static = isinstance(size, int) and isinstance(stride, int)
        strides[outer] = size * stride if static else _call(graph, operator.mul, (size, stride))
    return [strides[dim] for dim in range(len(dims))]


def _inverse(order: MemoryOrder) -> list[int]:
    return [order.dims.index(dim) for dim in range(len(order.dims))]


def _permute(graph: fx.Graph, node: fx.Node, dims: Sequence[int]) -> fx.Node:
    if list(dims) == sorted(dims):
        return node
    return _call(graph, torch.ops.aten.permute.default, (node, list(dims)))


def _call(graph: fx.Graph, target: Callable[..., Any], arguments: tuple[Any, ...]) -> fx.Node:
    node = graph.create_node("call_function", target, arguments, name=_short_name(target))
    refresh_values([node])
    return node


def _short_name(target: Callable[..., Any]) -> str:
    return str(target.overloadpacket.__name__ if isinstance(target, compat.OpOverload) else target.__name__)


def _key(encoding: Encoding) -> object:
    """Equal for encodings that one template serves."""
    val, order = encoding.source.meta["val"], encoding.order
    # Symbols have no hash, and comparing them would install guards; the same text is the same size.
    sizes = tuple(map(str, (*val.shape, *val.stride())))
    rows = (order.dims, len(order.lead), order.tail, order.filled is not None)
    return (encoding.codec, encoding.lowering, rows, sizes, val.dtype, val.device)


def _trace_encode(encoding: Encoding, decompositions: object) -> fx.GraphModule:
    codec, order, val = encoding.codec, encoding.order, encoding.source.meta["val"]
    called = encoding.lowering == OPERATOR
    if called and order.filled is None:
        return _write_encode_call(encoding)
    kernels = lowering.find(codec, order.cols, val.dtype) if encoding.lowering == TRITON else None

    def encode(x: torch.Tensor, salt: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if called:
            return tuple(torch.ops.fxcompress.encode(to_rows(x, order), 1, describe(codec), 0))
        if kernels is not None:
            # Its salt is a number, which every copy of the graph gets for itself.
            return kernels.encode(to_rows(x, order), 0)
        return codec.encode(to_rows(x, order), salt)

    with compat.fake_mode_of([val]), torch.no_grad():
        salt = torch.full((), 0, dtype=torch.int64, device=val.device)
        packed = make_fx(encode, **_how(val, decompositions))(val, salt)
    lowering.share_outputs(packed)
    packed = clean(packed)
    if not lowering.wanted(val):
        join_views(packed)
    _, noise = placeholders(packed)
    if not noise.users:
        packed.graph.erase_node(noise)
        packed.recompile()
    return packed


def _trace_decode(encoding: Encoding, decompositions: object, *, called: bool = False) -> fx.GraphModule:
    """The decode as a template: the codec's own ATen, or if `called` one call of the operator."""
    codec, order, val = encoding.codec, encoding.order, encoding.source.meta["val"]
    payload = _empty_payload(encoding)

    def decode(*arguments: Any) -> tuple[torch.Tensor, ...]:
        parts, sizes = arguments[: len(payload)], iter(arguments[len(payload) :])
        filled = order.filled and tuple(size if isinstance(size, int) else next(sizes) for size in order.filled)
        if called:
            rows = torch.ops.fxcompress.decode(list(parts), list(order.tail), describe(codec), val.dtype)
        else:
            rows = codec.decode(parts, order.cols, val.dtype)
        if not is_dense(rows.shape, rows.stride()):
            # Each row ends within a group; what reads the decoded tensor views it as what was encoded.
            rows = rows.clone(memory_format=torch.contiguous_format)
        return (from_rows(rows, replace(order, filled=filled)),)

    sizes = [val.shape[dim] for dim in sizes_to_save(encoding)]
    with compat.fake_mode_of([val]), torch.no_grad():
        unpacked = clean(make_fx(decode, **_how(val, decompositions))(*payload, *sizes))
    if lowering.wanted(val):
        cast_last(unpacked)
    else:
        join_views(unpacked)
    return unpacked


def _empty_payload(encoding: Encoding) -> list[torch.Tensor]:
    order, val = encoding.order, encoding.source.meta["val"]
    with compat.fake_mode_of([val]):
        fields = encoding.codec.fields(order.cols, val.dtype)
        return [torch.empty((*order.lead, *f.shape), dtype=f.dtype, device=val.device) for f in fields]


def _how(val: torch.Tensor, decompositions: object) -> dict[str, Any]:
    return {"tracing_mode": "real" if is_static(val) else "symbolic", "decomposition_table": decompositions}


def clean(gm: fx.GraphModule) -> fx.GraphModule:
    """Without dead code and without the aliases that tracing puts behind reinterpreted bits: nodes cost time."""
    for node in gm.graph.find_nodes(op="call_function", target=torch.ops.aten.alias.default):
        node.replace_all_uses_with(node.args[0])
    gm.graph.eliminate_dead_code()
    return gm
