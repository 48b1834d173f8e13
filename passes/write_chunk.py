"""One chunk of a region, written node by node.

`Chunk` emits the region's nodes on slices of their operands. For a compiler that fuses, a fence separates the loss from
its gradient: what the gradient reads of the forward are then the logits and small per-token values, everything between
is computed again where it is read, and the gradient takes the logits' place in memory.
"""

import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from fxcompress import compat
from fxcompress.passes import loss_ops  # noqa: F401  (registers the operators)
from fxcompress.passes.alias import elements_in
from fxcompress.passes.loss_region import Region
from fxcompress.passes.ops import op_name
from fxcompress.passes.row_ops import TokenSum, family, is_same_in_chunks, keeps, reduced_dims
from fxcompress.passes.token_rows import Read, Unchunkable, shape_of

PREFIX = "actcomp_loss_"
Key = tuple[fx.Node, Read]
aten = torch.ops.aten


@dataclass(frozen=True, slots=True)
class Writer:
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

    def add_product(self, total: fx.Node, left: fx.Node, right: fx.Node) -> fx.Node:
        """`total + left @ right` in place of `total`, as far as the compiler can tell that nobody else reads it."""
        functional = compat.auto_functionalized()
        kwargs: dict[str, Any] = {"total": total, "left": left, "right": right}
        target = torch.ops.fxcompress.add_product_.default
        call = self.graph.create_node("call_function", functional, (target,), kwargs, name=PREFIX + "add_product")
        call.meta["val"] = (None, total.meta["val"])
        result = self.graph.create_node("call_function", operator.getitem, (call, 1), name=PREFIX + "total")
        result.meta["val"] = total.meta["val"]
        return result

    def size(self, size: int | torch.SymInt) -> int | fx.Node:
        """A size as an argument: a number, or the node that states this symbolic size."""
        if isinstance(size, int):
            return size
        known: list[fx.Node] = list(self.graph.nodes)
        for node in known:
            val = node.meta.get("val")
            if isinstance(val, torch.SymInt) and compat.known_equal(val, size):
                return node
            if isinstance(val, torch.Tensor) and node.op == "placeholder":
                for dim, found in enumerate(val.shape):
                    if isinstance(found, torch.SymInt) and compat.known_equal(found, size):
                        return self(aten.sym_size.int, node, dim)
        raise Unchunkable(f"no input states the size {size}")

    def sizes(self, shape: Sequence[int | torch.SymInt]) -> list[int | fx.Node]:
        return [self.size(size) for size in shape]


@dataclass(slots=True)
class _Call:
    """A call that is being written: operands that are left to find, and those found."""

    node: fx.Node
    left: Iterator[tuple[fx.Node, Read]]
    local: dict[fx.Node, fx.Node] = field(default_factory=dict)


@dataclass(slots=True)
class Chunk:
    """The nodes of one chunk: `inputs` are its slices of outside operands, `size` its number of tokens."""

    write: Writer
    region: Region
    inputs: Mapping[Key, fx.Node]
    size: int | fx.Node
    fenced: bool
    env: dict[fx.Node, fx.Node] = field(default_factory=dict)
    again: dict[fx.Node, fx.Node] = field(default_factory=dict)
    """Behind the fence: what stands for values of the forward."""

    def emit(self) -> list[fx.Node]:
        """Write the chunk, loss before gradient; returns its results: exits, then what each sum is made of."""
        region = self.region
        for node in region.rows:
            if node not in region.gradient:
                self.env[node] = self._call(node, behind=False)
        for node in region.rows:
            if node in region.gradient:
                self.env[node] = self._call(node, behind=self.fenced)
        results = [self.env[node] for node in region.exits]
        for total in region.sums:
            inside = sources(region, total)
            results += [self.env[node] for node in inside] if is_product(total) else [self._partial(total)]
        return results

    def _call(self, node: fx.Node, *, behind: bool) -> fx.Node:
        """Write a call, and in front of it those that what it reads takes again."""
        calls = [_Call(node, iter(self.region.reads[node].items()))]
        while True:
            call = calls[-1]
            for arg, read in call.left:
                if behind and self._is_written_again(arg):
                    calls.append(_Call(arg, iter(self.region.reads[arg].items())))
                    break
                call.local[arg] = self._operand(arg, read, behind)
            else:
                calls.pop()
                made = self._written(call.node, call.local)
                if not calls:
                    return made
                self.again[call.node] = calls[-1].local[call.node] = made

    def _written(self, node: fx.Node, local: dict[fx.Node, fx.Node]) -> fx.Node:
        if node is self.region.start:
            args, kwargs = fx.map_arg((node.args, node.kwargs), local.__getitem__)
            return self.write(node.target, *args, **kwargs)
        return family(node).emit(self.write, node, self.region.rows[node], local, self.size)

    def _operand(self, arg: fx.Node, read: Read, behind: bool) -> fx.Node:
        """What stands for an operand in this chunk."""
        region = self.region
        if arg not in region.rows:
            return self._outside(arg, read)
        if not behind or arg in region.gradient or arg is region.start:
            return self.env[arg]
        if arg not in self.again:
            self.again[arg] = self._fenced(arg)
        return self.again[arg]

    def _is_written_again(self, arg: fx.Node) -> bool:
        """Whether a value of the forward is still to be computed again behind the fence: small ones are handed over."""
        region = self.region
        if arg not in region.rows or arg in region.gradient or arg is region.start or arg in self.again:
            return False
        size, logits = (elements_in(shape_of(self.env[node])) for node in (arg, region.start))
        return 4 * size >= logits

    def _outside(self, arg: fx.Node, read: Read) -> fx.Node:
        same = is_same_in_chunks(arg, read)
        return self.write(arg.target, *arg.args, **arg.kwargs) if same else self.inputs[arg, read]

    def _fenced(self, node: fx.Node) -> fx.Node:
        done = [self.env[other] for other in self.region.exits if other not in self.region.gradient]
        return self.write(torch.ops.fxcompress.after.default, self.env[node], done)

    def _partial(self, total: TokenSum) -> fx.Node:
        """One chunk's share of a sum that is no product."""
        ((operand, read),) = total.operands
        val, rows, rank = total.node.meta["val"], read.rows, len(shape_of(operand))
        assert rows is not None
        dims = {dim % rank for dim in reduced_dims(total.node, rank)}
        inner = {rows.first if rows.first <= dim < rows.last else rows.inner(dim, rank) for dim in dims}
        dtype = sum_dtype(val.dtype)
        return self.write(aten.sum.dim_IntList, self.env[operand], sorted(inner), keeps(total.node), dtype=dtype)


def is_product(total: TokenSum) -> bool:
    """Whether a sum over tokens is a matrix product."""
    return op_name(total.node) == "mm"


def sources(region: Region, total: TokenSum) -> list[fx.Node]:
    """The region's nodes that a product over tokens is made of, without their transposition."""
    return [_untransposed(region, arg) for arg, _ in total.operands if arg in region.rows]


def add_share(
    write: Writer,
    region: Region,
    total: TokenSum,
    before: fx.Node,
    share: Sequence[fx.Node],
    inputs: Mapping[Key, fx.Node],
) -> fx.Node:
    """Add one chunk's share to a sum over tokens; `share` are the chunk's results for it."""
    if not is_product(total):
        return write(aten.add.Tensor, before, share[0])
    given = iter(share)
    operands = []
    for arg, read in total.operands:
        if arg not in region.rows:
            operands.append(inputs[arg, read])
            continue
        source, node = _untransposed(region, arg), next(given)
        turned = arg if source is arg else family(arg).emit(write, arg, region.rows[arg], {source: node}, None)
        operands.append(node if source is arg else turned)
    left, right = operands
    return write.add_product(before, left, right)


def zeros(write: Writer, total: TokenSum) -> fx.Node:
    """A sum before its first share."""
    shape, val = list(shape_of(total.node)), total.node.meta["val"]
    if not is_product(total) and keeps(total.node):
        ((_, read),) = total.operands
        assert read.rows is not None
        shape = read.rows.chunk(shape, 1)
    return write(aten.full.default, write.sizes(shape), 0.0, dtype=sum_dtype(val.dtype), device=val.device)


def sum_dtype(dtype: torch.dtype) -> torch.dtype:
    """Sums are rounded once per chunk, so they need more bits than a result that is rounded once."""
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype


def _untransposed(region: Region, node: fx.Node) -> fx.Node:
    if op_name(node) in ("t", "transpose", "permute") and node.all_input_nodes[0] in region.rows:
        return node.all_input_nodes[0]
    return node
