"""Compute a region found by `find_loss` in chunks of tokens, so that logits never exist as a whole.

The tangent of a loss is one number that enters linearly, so each chunk computes the gradient for a tangent of one in
the forward, while its logits are there: hidden states' gradient per token, weight's and bias's added up chunk after
chunk in graph order, in fp32 where they have fewer bits. The backward multiplies by the tangent. No product is computed
twice. Each chunk takes the sums of the one before, so that no two chunks' logits are alive together.

What the forward then saves are gradients, marked `meta["actcomp"] == GRADIENT`: they must never become lossy.
"""

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from fxcompress import compat
from fxcompress.passes.find_saved import outputs
from fxcompress.passes.fingerprint import fingerprint
from fxcompress.passes.joint_outputs import add_outputs, is_mutating, sort_graph
from fxcompress.passes.loss_region import Region
from fxcompress.passes.put_back import Results, put_back
from fxcompress.passes.row_ops import is_same_in_chunks
from fxcompress.passes.splice import call_outlined
from fxcompress.passes.token_rows import Read, shape_of
from fxcompress.passes.write_chunk import PREFIX, Chunk, Key, Writer, add_share, is_product, sources, zeros

aten = torch.ops.aten


@dataclass(frozen=True, slots=True)
class _Operand:
    """An operand from outside the region, prepared; its tokens lie in dimension `dim`, None: chunks read the whole."""

    node: fx.Node
    dim: int | None


def rewrite_loss(
    gm: fx.GraphModule, region: Region, chunks: int, num_fwd_outputs: int, *, fused: bool, outline: bool
) -> int:
    """Compute `region` in `chunks` chunks; returns how many outputs were put behind the user's forward outputs.

    PyTorch's partitioner computes in the forward only what forward outputs need. The gradients are therefore forward
    outputs of the joint graph; `strip_outputs` takes them out of the partitioned forward again.

    Args:
        gm: joint graph that holds the region; edited in place.
        region: what `find_loss` found in it.
        chunks: at least 2.
        num_fwd_outputs: how many leading outputs are the user's forward outputs.
        fused: whether the inner compiler fuses and reorders.
        outline: whether equal chunks are calls of one subgraph; sizes must then be static.
    """
    (output,) = gm.graph.find_nodes(op="output")
    # What mutates inputs stands at the end, behind all that reads them as they were.
    end = next(node for node in gm.graph.nodes if node is output or is_mutating(node))
    with gm.graph.inserting_before(end):
        write = Writer(gm.graph, compat.fake_mode_of([region.start.meta["val"]]))
        work = _Work(gm, region, write, fused=fused, outline=outline)
        results = work.run(chunks)
        saved = put_back(write, region, results)
    add_outputs(output, saved, num_fwd_outputs)
    sort_graph(gm.graph)
    gm.graph.eliminate_dead_code()
    gm.recompile()
    return len(saved)


class _Work:
    """The region's operands, prepared once, and the chunks computed from them."""

    def __init__(self, gm: fx.GraphModule, region: Region, write: Writer, *, fused: bool, outline: bool) -> None:
        self.gm, self.region, self.write, self.fused, self.outline = gm, region, write, fused, outline
        self.templates: dict[object, tuple[str, fx.GraphModule]] = {}
        units = self._unit_chain()
        keys = [(arg, read) for node in region.members for arg, read in region.reads[node].items()]
        outside = [key for key in dict.fromkeys(keys) if key[0] not in region.rows and not is_same_in_chunks(*key)]
        self.operands = {key: _prepared(write, region, units.get(key[0], key[0]), key[1]) for key in outside}

    def run(self, chunks: int) -> Results:
        """Write all chunks, in order."""
        region, write = self.region, self.write
        sums = {total.node: zeros(write, total) for total in region.sums}
        pieces: dict[fx.Node, list[fx.Node]] = {node: [] for node in region.exits}
        done: list[fx.Node] = []
        for start, end in _bounds(write, self._tokens(), chunks):
            inputs = self._slices(start, end, done)
            results = iter(self._outlined(inputs) if self.outline else self._inlined(inputs))
            for node in region.exits:
                pieces[node].append(next(results))
            for total in region.sums:
                share = [next(results) for _ in (sources(region, total) if is_product(total) else [total])]
                sums[total.node] = add_share(write, region, total, sums[total.node], share, inputs)
            done = [*sums.values(), *(found[-1] for found in pieces.values())]
        return Results(pieces, sums)

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

    def _slices(self, start: Any, end: Any, done: Sequence[fx.Node]) -> dict[Key, fx.Node]:
        """One chunk of every operand. Where calls may be reordered, it waits for the chunk before."""
        inputs = {}
        for key, operand in self.operands.items():
            node = operand.node
            if operand.dim is not None:
                node = self.write(aten.slice.Tensor, node, operand.dim, start, end)
            if self.fused and done and key == self._hidden():
                node = self.write(torch.ops.fxcompress.after.default, node, list(done))
            inputs[key] = node
        return inputs

    def _hidden(self) -> Key:
        """The projection's operand that has the tokens."""
        reads = self.region.reads[self.region.start]
        return next((arg, read) for arg, read in reads.items() if read.rows is not None)

    def _tokens(self) -> int | fx.Node:
        return _size(self.write, self.operands[self._hidden()].node)

    def _inlined(self, inputs: Mapping[Key, fx.Node]) -> list[fx.Node]:
        size = _size(self.write, inputs[self._hidden()])
        return Chunk(self.write, self.region, inputs, size, fenced=self.fused).emit()

    def _outlined(self, inputs: Mapping[Key, fx.Node]) -> list[fx.Node]:
        vals = [node.meta["val"] for node in inputs.values()]
        kind = tuple((tuple(val.shape), tuple(val.stride())) for val in vals)
        if kind not in self.templates:
            template = self._template(inputs)
            self.templates[kind] = PREFIX + fingerprint(template)[:16], template
        name, template = self.templates[kind]
        names = [PREFIX + "chunk"] * len(outputs(template))
        return call_outlined(self.gm, template, name, list(inputs.values()), names)

    def _template(self, inputs: Mapping[Key, fx.Node]) -> fx.GraphModule:
        """One chunk as a graph of its own."""
        gm = fx.GraphModule(torch.nn.Module(), fx.Graph())
        write = Writer(gm.graph, self.write.mode)
        given = {}
        for number, (key, node) in enumerate(inputs.items()):
            val = node.meta["val"]
            given[key] = gm.graph.placeholder(f"operand_{number}")
            with write.mode:
                own = torch.empty_strided(val.shape, val.stride(), dtype=val.dtype, device=val.device)
            given[key].meta["val"] = own
        size = _size(write, given[self._hidden()])
        results = Chunk(write, self.region, given, size, fenced=True).emit()
        gm.graph.output(tuple(_own(write, gm.graph, results)))
        gm.graph.eliminate_dead_code()
        gm.recompile()
        return gm


def _own(write: Writer, graph: fx.Graph, results: Sequence[fx.Node]) -> list[fx.Node]:
    """Results in storages of their own: a subgraph returns no views."""
    seen = {node.meta["val"].untyped_storage()._cdata for node in graph.find_nodes(op="placeholder")}
    owned = []
    for node in results:
        key = node.meta["val"].untyped_storage()._cdata
        owned.append(write(aten.clone.default, node) if key in seen else node)
        seen.add(key)
    return owned


def _size(write: Writer, node: fx.Node) -> int | fx.Node:
    """The number of tokens of a prepared operand of the projection."""
    size = shape_of(node)[0]
    return size if isinstance(size, int) else write(aten.sym_size.int, node, 0)


def _bounds(write: Writer, total: int | fx.Node, chunks: int) -> list[tuple[Any, Any]]:
    """Where each chunk starts and ends: equal ones, what does not divide goes to the last."""
    if isinstance(total, int):
        each = -(-total // chunks)
        return [(start, min(start + each, total)) for start in range(0, total, each)]
    each_node = write(operator.floordiv, total, chunks)
    starts: list[Any] = [0, each_node, *(write(operator.mul, each_node, i) for i in range(2, chunks))]
    return list(zip(starts, [*starts[1:], total], strict=True))


def _prepared(write: Writer, region: Region, node: fx.Node, read: Read) -> _Operand:
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
