"""Compute a region found by `find_loss` in chunks of tokens, so that logits never exist as a whole.

The tangent of a loss is one number that enters linearly, so each chunk computes the gradient for a tangent of one in
the forward, while its logits are there: hidden states' gradient per token, weight's and bias's added up chunk after
chunk in graph order, in fp32 where they have fewer bits. The backward multiplies by the tangent. No product is computed
twice. Each chunk takes the sums of the one before, so that no two chunks' logits are alive together.

What the forward then saves are gradients, marked `meta["actcomp"] == GRADIENT`: they must never become lossy.
"""

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from fxcompress import compat
from fxcompress.passes.find_loss import Region
from fxcompress.passes.find_saved import outputs
from fxcompress.passes.fingerprint import fingerprint
from fxcompress.passes.ops import GRADIENT, op_name
from fxcompress.passes.row_ops import TokenSum, family, is_constant, keeps, reduced_dims
from fxcompress.passes.splice import call_outlined
from fxcompress.passes.token_rows import Read, Unchunkable, same, shape_of

PREFIX = "actcomp_loss_"
aten = torch.ops.aten
_DESCRIPTIVE = ("nn_module_stack", "fwd_nn_module_stack", "stack_trace")
Key = tuple[fx.Node, Read]


@dataclass(frozen=True, slots=True)
class _Operand:
    """An operand from outside the region, prepared; its tokens lie in dimension `dim`, None: chunks read the whole."""

    node: fx.Node
    dim: int | None


@dataclass(frozen=True, slots=True)
class _Writer:
    """Appends calls to a graph, each with the fake value that running it gives."""

    graph: fx.Graph
    mode: Any

    def __call__(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        name = str(getattr(target, "__name__", target)).split(".")[0].strip("_")
        node = self.graph.create_node("call_function", target, args, kwargs, name=PREFIX + name)
        values, named = fx.map_arg((args, kwargs), lambda arg: arg.meta["val"])
        with self.mode:
            node.meta["val"] = target(*values, **named)
        return node

    def size(self, size: int | torch.SymInt) -> int | fx.Node:
        """A size as an argument: a number, or the node that states this symbolic size."""
        if isinstance(size, int):
            return size
        for node in self.graph.nodes:
            val = node.meta.get("val")
            if isinstance(val, torch.SymInt) and val.node.expr == size.node.expr:
                return node
            if isinstance(val, torch.Tensor) and node.op == "placeholder":
                for dim, found in enumerate(val.shape):
                    if isinstance(found, torch.SymInt) and found.node.expr == size.node.expr:
                        return self(aten.sym_size.int, node, dim)
        raise AssertionError(f"no node states the size {size}")

    def sizes(self, shape: Sequence[int | torch.SymInt]) -> list[int | fx.Node]:
        return [self.size(size) for size in shape]


@dataclass(frozen=True, slots=True)
class _Results:
    """What the chunks gave: pieces per token in order, and sums."""

    pieces: dict[fx.Node, list[fx.Node]]
    sums: dict[fx.Node, fx.Node]


def rewrite_loss(gm: fx.GraphModule, region: Region, chunks: int, num_fwd_outputs: int, *, outline: bool) -> int:
    """Compute `region` in `chunks` chunks; returns how many outputs were put behind the user's forward outputs.

    PyTorch's partitioner computes in the forward only what forward outputs need. The gradients are therefore forward
    outputs of the joint graph; `strip_outputs` takes them out of the partitioned forward again.

    Args:
        gm: joint graph that holds the region; edited in place.
        region: what `find_loss` found in it.
        chunks: at least 2.
        num_fwd_outputs: how many leading outputs are the user's forward outputs.
        outline: whether equal chunks are calls of one subgraph; sizes must then be static.
    """
    (output,) = gm.graph.find_nodes(op="output")
    members = region.members
    with gm.graph.inserting_before(output):
        write = _Writer(gm.graph, compat.fake_mode_of([region.start.meta["val"]]))
        work = _Work(gm, region, write, outline)
        results = work.run(chunks)
        final = {node: _joined(write, region, node, pieces) for node, pieces in results.pieces.items()}
        final |= {node: _shaped(write, node, total) for node, total in results.sums.items()}
        saved = [final[node] for node in final if node in region.scaled]
        for node, value in final.items():
            value.meta |= {key: node.meta[key] for key in _DESCRIPTIVE if key in node.meta}
            used = value
            if node in region.scaled:
                _mark(value, {*results.pieces.get(node, ()), *results.sums.values()})
                used = _scaled(write, value, region.tangent, node)
            node.replace_all_uses_with(used, delete_user_cb=lambda user: user not in members)
    _add_outputs(output, saved, num_fwd_outputs)
    sort_graph(gm.graph)
    gm.graph.eliminate_dead_code()
    gm.recompile()
    return len(saved)


def strip_outputs(fw: fx.GraphModule, start: int, count: int) -> None:
    """Take `count` outputs from number `start` on out of a forward graph."""
    (output,) = fw.graph.find_nodes(op="output")
    _set_outputs(output, outputs(fw)[:start] + outputs(fw)[start + count :])
    if "desc" in output.meta:
        desc = list(output.meta["desc"])
        output.meta["desc"] = desc[:start] + desc[start + count :]
    fw.recompile()


def sort_graph(graph: fx.Graph) -> None:
    """Move every node behind its operands, and otherwise keep the order."""
    waiting: dict[fx.Node, list[fx.Node]] = {}
    ready: set[fx.Node] = set()
    nodes = list(graph.nodes)
    cursor = graph._root
    pending = list(reversed(nodes))
    while pending:
        node = pending.pop()
        missing = next((arg for arg in node.all_input_nodes if arg not in ready), None)
        if missing is not None:
            waiting.setdefault(missing, []).append(node)
            continue
        ready.add(node)
        cursor.append(node)
        cursor = node
        pending.extend(reversed(waiting.pop(node, [])))


class _Work:
    """The region's operands, prepared once, and the chunks computed from them."""

    def __init__(self, gm: fx.GraphModule, region: Region, write: _Writer, outline: bool) -> None:
        self.gm, self.region, self.write, self.outline = gm, region, write, outline
        self.templates: dict[int, fx.GraphModule] = {}
        units = self._unit_chain()
        keys = [(arg, read) for node in region.members for arg, read in region.reads[node].items()]
        outside = [key for key in dict.fromkeys(keys) if key[0] not in region.members and not is_constant(key[0])]
        self.operands = {key: _prepared(write, region, units.get(key[0], key[0]), key[1]) for key in outside}

    def run(self, chunks: int) -> _Results:
        """Write all chunks, in order."""
        region, write = self.region, self.write
        sums = {total.node: self._zeros(total) for total in region.sums}
        pieces: dict[fx.Node, list[fx.Node]] = {node: [] for node in region.exits}
        for start, end in _bounds(write, self._tokens(), chunks):
            inputs = {
                key: operand.node if operand.dim is None else write(aten.slice.Tensor, operand.node, operand.dim, start, end)
                for key, operand in self.operands.items()
            }
            got = self._call(inputs, sums) if self.outline else self._body(write, inputs, sums)
            for node, piece in got.pieces.items():
                pieces[node] += piece
            sums = got.sums
        return _Results(pieces, sums)

    def _tokens(self) -> _Operand:
        """An operand that has all tokens."""
        return next(operand for operand in self.operands.values() if operand.dim is not None)

    def _unit_chain(self) -> dict[fx.Node, fx.Node]:
        """What leads from the tangent to the region, for a tangent of one."""
        region, write = self.region, self.write
        val = region.tangent.meta["val"]
        one = write(aten.full.default, write.sizes(val.shape), 1.0, dtype=val.dtype, device=val.device)
        env: dict[fx.Node, fx.Node] = {region.tangent: one}
        for node in region.chain:
            args, kwargs = fx.map_arg((node.args, node.kwargs), lambda arg: env.get(arg, arg))
            env[node] = write(node.target, *args, **kwargs)
        return env

    def _zeros(self, total: TokenSum) -> fx.Node:
        val = total.node.meta["val"]
        shape = self.write.sizes(_chunk_sum_shape(total))
        return self.write(aten.full.default, shape, 0.0, dtype=_sum_dtype(val.dtype), device=val.device)

    def _body(self, write: _Writer, inputs: Mapping[Key, fx.Node], sums: Mapping[fx.Node, fx.Node]) -> _Results:
        """Write one chunk node by node."""
        region = self.region
        env: dict[fx.Node, fx.Node] = {}
        totals = {total.node: total for total in region.sums}
        added = dict(sums)
        size: Any = next(_size(write, node, self.operands[key].dim) for key, node in inputs.items() if self.operands[key].dim is not None)
        for node in region.members:
            local: dict[fx.Node, fx.Node] = {}
            for arg, read in region.reads[node].items():
                if arg in env:
                    local[arg] = env[arg]
                elif is_constant(arg):
                    env[arg] = local[arg] = write(arg.target, *arg.args, **arg.kwargs)
                else:
                    local[arg] = inputs[arg, read]
            if node in totals:
                added[node] = _add(write, totals[node], local, sums[node])
            elif node is region.start:
                args, kwargs = fx.map_arg((node.args, node.kwargs), local.__getitem__)
                env[node] = write(node.target, *args, **kwargs)
            else:
                env[node] = family(node).emit(write, node, region.rows[node], local, size)
        return _Results({node: [env[node]] for node in region.exits}, added)

    def _call(self, inputs: Mapping[Key, fx.Node], sums: Mapping[fx.Node, fx.Node]) -> _Results:
        """Call one chunk as a subgraph."""
        arguments = [*inputs.values(), *sums.values()]
        size = next(
            int(node.meta["val"].shape[dim]) for key, node in inputs.items() if (dim := self.operands[key].dim) is not None
        )
        if size not in self.templates:
            self.templates[size] = self._template(inputs, sums)
        template = self.templates[size]
        name = PREFIX + fingerprint(template)[:16]
        names = [PREFIX + "chunk"] * (len(self.region.exits) + len(sums))
        results = call_outlined(self.gm, template, name, arguments, names)
        exits = dict(zip(self.region.exits, results, strict=False))
        return _Results(
            {node: [result] for node, result in exits.items()},
            dict(zip(sums, results[len(exits) :], strict=True)),
        )

    def _template(self, inputs: Mapping[Key, fx.Node], sums: Mapping[fx.Node, fx.Node]) -> fx.GraphModule:
        """One chunk as a graph of its own."""
        graph = fx.Graph()
        write = _Writer(graph, self.write.mode)

        def argument(node: fx.Node) -> fx.Node:
            val = node.meta["val"]
            copy = graph.placeholder(f"operand_{len(graph.nodes)}")
            with write.mode:
                copy.meta["val"] = torch.empty_strided(val.shape, val.stride(), dtype=val.dtype, device=val.device)
            return copy

        given = {key: argument(node) for key, node in inputs.items()}
        before = {node: argument(total) for node, total in sums.items()}
        got = self._body(write, given, before)
        results = [*(piece for (piece,) in got.pieces.values()), *got.sums.values()]
        graph.output(tuple(_own(write, graph, results)))
        return fx.GraphModule(torch.nn.Module(), graph)


def _own(write: _Writer, graph: fx.Graph, results: Sequence[fx.Node]) -> list[fx.Node]:
    """Results in storages of their own: a subgraph returns no views."""
    seen = {node.meta["val"].untyped_storage()._cdata for node in graph.find_nodes(op="placeholder")}
    owned = []
    for node in results:
        key = node.meta["val"].untyped_storage()._cdata
        owned.append(write(aten.clone.default, node) if key in seen else node)
        seen.add(key)
    return owned


def _size(write: _Writer, node: fx.Node, dim: int | None) -> int | fx.Node:
    assert dim is not None
    size = shape_of(node)[dim]
    return size if isinstance(size, int) else write(aten.sym_size.int, node, dim)


def _bounds(write: _Writer, operand: _Operand, chunks: int) -> list[tuple[Any, Any]]:
    """Where each chunk starts and ends: equal ones, the last with what is left over."""
    total = _size(write, operand.node, operand.dim)
    if isinstance(total, int):
        each = -(-total // chunks)
        return [(start, min(start + each, total)) for start in range(0, total, each)]
    each_node = write(operator.floordiv, total, chunks)
    starts: list[Any] = [0, each_node, *(write(operator.mul, each_node, i) for i in range(2, chunks))]
    return list(zip(starts, [*starts[1:], total], strict=True))


def _prepared(write: _Writer, region: Region, node: fx.Node, read: Read) -> _Operand:
    """An outside operand with its tokens in one dimension, those that a slice leaves out taken away."""
    if read.rows is None:
        if read.ones is None:
            return _Operand(node, None)
        first, last = read.ones
        shape = shape_of(node)
        return _Operand(write(aten.reshape.default, node, write.sizes([*shape[: first + 1], *shape[last:]])), None)
    rows = read.rows
    if read.spread:
        node = write(aten.expand.default, node, write.sizes(read.spread))
    shape = shape_of(node)
    if region.cut is not None and not rows.cut:
        cut = region.cut
        sizes = [*shape[: rows.first], *cut.sizes, *shape[rows.last :]]
        if len(cut.sizes) > 1 or rows.last - rows.first > 1:
            node = write(aten.reshape.default, node, write.sizes(sizes))
        node = write(aten.slice.Tensor, node, rows.first + cut.place, cut.start, cut.end)
        shape = shape_of(node)
        last = rows.first + len(cut.sizes)
    else:
        last = rows.last
    if last - rows.first > 1:
        whole = [*write.sizes(shape[: rows.first]), -1, *write.sizes(shape[last:])]
        node = write(aten.reshape.default, node, whole)
    return _Operand(node, rows.first)


def _add(write: _Writer, total: TokenSum, local: Mapping[fx.Node, fx.Node], before: fx.Node) -> fx.Node:
    """Add one chunk's share to a sum over tokens."""
    node, dtype = total.node, before.meta["val"].dtype
    if op_name(node) == "mm":
        left, right = (local[arg] for arg, _ in total.operands)
        if left.meta["val"].dtype is dtype:
            return write(aten.addmm.default, before, left, right)
        if left.meta["val"].device.type == "cuda":
            return write(aten.addmm.dtype, before, left, right, dtype)
        cast = torch.ops.prims.convert_element_type.default
        return write(aten.addmm.default, before, write(cast, left, dtype), write(cast, right, dtype))
    (operand,) = local.values()
    share = write(aten.sum.dim_IntList, operand, _chunk_dims(total), keeps(node), dtype=dtype)
    return write(aten.add.Tensor, before, share)


def _chunk_dims(total: TokenSum) -> list[int]:
    """The dimensions that a chunk sums over."""
    ((operand, read),) = total.operands
    rows, rank = read.rows, len(shape_of(operand))
    assert rows is not None
    dims = {dim % rank for dim in reduced_dims(total.node, rank)}
    return sorted({rows.first if rows.first <= dim < rows.last else rows.inner(dim, rank) for dim in dims})


def _chunk_sum_shape(total: TokenSum) -> list[Any]:
    """The shape of a chunk's share: token dimensions that stay with size 1 are one."""
    shape = list(shape_of(total.node))
    if op_name(total.node) == "mm" or not keeps(total.node):
        return shape
    ((_, read),) = total.operands
    assert read.rows is not None
    return read.rows.chunk(shape, 1)


def _sum_dtype(dtype: torch.dtype) -> torch.dtype:
    """Sums over chunks are rounded once per chunk, so they need more bits than a result that is rounded once."""
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype


def _joined(write: _Writer, region: Region, node: fx.Node, pieces: Sequence[fx.Node]) -> fx.Node:
    """The per-token value `node` from its pieces."""
    rows, shape = region.rows[node], shape_of(node)
    value = write(aten.cat.default, list(pieces), rows.first)
    cut = region.cut
    if cut is not None and not rows.cut:
        # Only gradients get here: tokens that the loss leaves out have none.
        whole = [*shape[: rows.first], *cut.sizes, *shape[rows.last :]]
        kept = [*cut.sizes]
        kept[cut.place] = len(range(*slice(cut.start, cut.end).indices(_static(cut.sizes[cut.place]))))
        dim = rows.first + cut.place
        value = write(aten.reshape.default, value, write.sizes([*shape[: rows.first], *kept, *shape[rows.last :]]))
        val = value.meta["val"]
        zeros = write(aten.full.default, write.sizes(whole), 0.0, dtype=val.dtype, device=val.device)
        value = write(aten.slice_scatter.default, zeros, value, dim, cut.start, cut.end)
    return _shaped(write, node, value)


def _static(size: int | torch.SymInt) -> int:
    if not isinstance(size, int):
        raise Unchunkable("a slice leaves a symbolic number of tokens")
    return size


def _shaped(write: _Writer, node: fx.Node, value: fx.Node) -> fx.Node:
    """A result in shape and dtype of the node that it replaces."""
    val = node.meta["val"]
    if not same(shape_of(value), val.shape):
        value = write(aten.reshape.default, value, write.sizes(val.shape))
    if value.meta["val"].dtype is not val.dtype:
        value = write(torch.ops.prims.convert_element_type.default, value, val.dtype)
    return value


def _scaled(write: _Writer, value: fx.Node, tangent: fx.Node, node: fx.Node) -> fx.Node:
    """A gradient for a tangent of one, multiplied by the tangent."""
    factor = tangent if tangent.meta["val"].dim() == 0 else write(aten.reshape.default, tangent, [])
    return _shaped(write, node, write(aten.mul.Tensor, value, factor))


def _mark(value: fx.Node, parts: set[fx.Node]) -> None:
    """Mark a gradient, and what it is put together from."""
    pending = [value]
    while pending:
        node = pending.pop()
        node.meta["actcomp"] = GRADIENT
        pending += [] if node in parts else [arg for arg in node.all_input_nodes if arg.name.startswith(PREFIX)]


def _add_outputs(output: fx.Node, values: Sequence[fx.Node], place: int) -> None:
    found = list(output.args[0])  # type: ignore[arg-type]
    _set_outputs(output, [*found[:place], *values, *found[place:]])
    if "desc" in output.meta:
        desc = list(output.meta["desc"])
        output.meta["desc"] = [*desc[:place], *(None for _ in values), *desc[place:]]


def _set_outputs(output: fx.Node, values: Sequence[object]) -> None:
    output.args = (type(output.args[0])(values),)  # type: ignore[call-arg]
