"""Surgery on a forward/backward pair that keeps the partition contract.

Forward outputs are `user | tensors | opaque | symints`, backward placeholders `symints | tensors | opaque | tangents`,
with equal names and order on both sides. New saved tensors go in front of the others, so that tensors saved without a
version check stay last. Every new node carries a `val`, and a backward placeholder's target equals its name: otherwise
generated code reads whatever else bears that name.
"""

import contextlib
import copy
import operator
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import fx

from fxcompress import compat
from fxcompress.passes.alias import is_static
from fxcompress.passes.find_saved import SavedPair, find_saved, outputs, placeholders

PREFIX = "actcomp_"


def set_outputs(gm: fx.GraphModule, values: Sequence[object]) -> None:
    (node,) = gm.graph.find_nodes(op="output")
    kind = type(node.args[0])
    node.args = (kind(values),)
    if "desc" in node.meta:
        # One descriptor per output; saved values have none of their own.
        known = list(node.meta["desc"])
        node.meta["desc"] = (known + [None] * len(values))[: len(values)]


def same_view(graph: fx.Graph, node: fx.Node, like: fx.Node) -> fx.Node:
    """A view of all of `node` as it lies, at the graph's insertion point, with what describes `like`.

    Inductor removes every spelling of "the same view" but this one.
    """
    val = node.meta["val"]
    view = graph.call_function(torch.ops.aten.as_strided.default, (node, list(val.shape), list(val.stride())))
    view.meta = {**like.meta, "val": val.as_strided(val.shape, val.stride())}
    return view


def add_placeholder(bw: fx.GraphModule, like: fx.Node, name: str, before: fx.Node) -> fx.Node:
    """A new backward placeholder with the metadata of the forward node `like`."""
    with bw.graph.inserting_before(before):
        node = bw.graph.create_node("placeholder", name, (), {}, name=name)
    node.meta = copy.copy(like.meta)
    node.target = node.name
    return node


def add_saved(
    fw: fx.GraphModule, bw: fx.GraphModule, node: fx.Node, num_fwd_outputs: int, front: SavedPair | None = None
) -> fx.Node:
    """Save forward `node` too, in front of the tensors saved so far; returns its backward placeholder.

    `front`: the first of those, if it is known.
    """
    if front is None:
        front = next(iter(find_saved(fw, bw, num_fwd_outputs=num_fwd_outputs)), None)
    outs = outputs(fw)
    if front is not None:
        place, first = front.position, front.bw
    else:
        place = num_fwd_outputs
        first = next(p for p in bw.graph.nodes if p.op != "placeholder" or isinstance(p.meta.get("val"), torch.Tensor))
    partner = add_placeholder(bw, node, node.name, first)
    if partner.name != node.name:
        raise AssertionError(f"{node.name!r} is taken in the backward graph")
    set_outputs(fw, [*outs[:place], node, *outs[place:]])
    return partner


def add_saved_size(fw: fx.GraphModule, bw: fx.GraphModule, size: fx.Node) -> fx.Node:
    """The backward node for a symbolic size of the forward: one that is there already, or a newly saved one."""
    known = [node for node in placeholders(bw) if isinstance(node.meta.get("val"), torch.SymInt)]
    for node in known:
        if node.meta["val"].node.expr == size.meta["val"].node.expr:
            return node
    if size.op != "placeholder" and any(node.name == size.name for node in bw.graph.nodes):
        size._rename(f"{PREFIX}{size.name}")
    last = known[-1] if known else None
    partner = add_placeholder(bw, size, size.name, last.next if last is not None else next(iter(bw.graph.nodes)))
    if partner.name != size.name:
        raise AssertionError(f"{size.name!r} is taken in the backward graph")
    set_outputs(fw, [*outputs(fw), size])
    return partner


def drop_unused(fw: fx.GraphModule, bw: fx.GraphModule, pairs: list[SavedPair]) -> list[SavedPair]:
    """Stop saving tensors that no backward node reads any more; returns the dropped pairs."""
    bw.graph.eliminate_dead_code()
    gone = [pair for pair in pairs if not pair.bw.users]
    positions = {pair.position for pair in gone}
    set_outputs(fw, [out for i, out in enumerate(outputs(fw)) if i not in positions])
    for pair in gone:
        bw.graph.erase_node(pair.bw)
    fw.graph.eliminate_dead_code()
    return gone


def place_behind(source: fx.Node) -> fx.Node:
    """The first node behind `source` that others may be put in front of."""
    place = source.next
    while place.op == "placeholder":
        place = place.next
    return place


def copy_node(graph: fx.Graph, node: fx.Node, env: dict[fx.Node, fx.Node], name: str) -> fx.Node:
    """Copy a call to `graph` as `name`, at its insertion point, arguments translated by `env`."""

    def translate(arg: fx.Node) -> fx.Node:
        return env[arg]

    args = fx.map_arg(node.args, translate)
    kwargs = fx.map_arg(node.kwargs, translate)
    new = graph.create_node(node.op, node.target, args, kwargs, name=name)
    new.meta = copy.copy(node.meta)
    env[node] = new
    return new


def refresh_values(nodes: Iterable[fx.Node]) -> None:
    """Give copied nodes fake values of their own, by running each on those of its arguments.

    Storages must be distinct where they will be at run time: AOTAutograd compares them, and so does `liveness`.
    """
    mode = None
    for node in nodes:
        mode = mode or compat.fake_mode_of([node.meta.get("val")])
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda arg: arg.meta["val"])
        with mode or contextlib.nullcontext():
            node.meta["val"] = node.target(*args, **kwargs)  # type: ignore[operator]


def inline(
    graph: fx.Graph,
    template: fx.GraphModule,
    arguments: Sequence[fx.Node],
    names: Sequence[str | None],
    *,
    fresh: bool,
) -> list[fx.Node]:
    """Copy a traced function into `graph` at its insertion point.

    Args:
        graph: receiver; its insertion point decides where.
        template: traced function of tensors, returning a flat sequence of tensors.
        arguments: one node per placeholder of `template`.
        names: wanted name per result (None: any); a result that gets a name must be computed by `template`.
        fresh: whether the copies take over the template's fake values; False if an earlier copy has them.

    Returns:
        The nodes that stand for the results.
    """
    env = dict(zip(placeholders(template), arguments, strict=True))
    results = outputs(template)
    wanted = {node: name for node, name in zip(results, names, strict=True) if name and isinstance(node, fx.Node)}
    copies = [
        copy_node(graph, node, env, wanted.get(node, PREFIX + node.name))
        for node in template.graph.nodes
        if node.op == "call_function"
    ]
    if not fresh:
        _own_storages(copies, template, arguments)
    return [env[node] for node in results if isinstance(node, fx.Node)]


def call_outlined(
    gm: fx.GraphModule,
    template: fx.GraphModule,
    name: str,
    arguments: Sequence[fx.Node],
    names: Sequence[str | None],
) -> list[fx.Node]:
    """Call a traced function of static sizes as a subgraph of `gm`, at its graph's insertion point.

    Args:
        gm: receives `template` as its submodule `name`, unless it has it already.
        template: traced function of tensors, returning a flat sequence of new tensors.
        name: equal names are compiled once.
        arguments, names: as for `inline`.

    Returns:
        The nodes that stand for the results.
    """
    if not hasattr(gm, name):
        gm.add_submodule(name, template)
    call = gm.graph.call_function(compat.invoke_subgraph(), (gm.graph.get_attr(name), name, *arguments))
    vals = []
    for result in outputs(template):
        assert isinstance(result, fx.Node)
        val = result.meta["val"]
        with val.fake_mode:
            vals.append(torch.empty_strided(val.shape, val.stride(), dtype=val.dtype, device=val.device))
    call.meta["val"] = tuple(vals)
    results = []
    for position, (wanted, val) in enumerate(zip(names, vals, strict=True)):
        result = gm.graph.create_node("call_function", operator.getitem, (call, position), name=wanted)
        result.meta["val"] = val
        results.append(result)
    return results


def _own_storages(copies: Sequence[fx.Node], template: fx.GraphModule, arguments: Sequence[fx.Node]) -> None:
    """Give copies of a template fake values like its own, in storages of their own.

    As `refresh_values`, without running the operators: equal layers make many copies.
    """
    storages: dict[int, torch.UntypedStorage] = {}
    bases: dict[int, torch.Tensor] = {}
    for node, argument in zip(placeholders(template), arguments, strict=True):
        if isinstance(node.meta["val"], torch.Tensor):  # else a symbolic size
            key = node.meta["val"].untyped_storage()._cdata
            storages[key], bases[key] = argument.meta["val"].untyped_storage(), argument.meta["val"]

    def own(val: Any) -> Any:
        if not isinstance(val, torch.Tensor):
            return val
        theirs = val.untyped_storage()
        if not is_static(val):
            return _symbolic(val, bases)
        if theirs._cdata not in storages:
            storages[theirs._cdata] = torch.UntypedStorage(theirs.nbytes(), device="meta")  # type: ignore[no-untyped-call]
        return compat.in_storage(val, storages[theirs._cdata])

    for node in copies:
        # A kernel's results come by name.
        val = node.meta["val"]
        by_name = isinstance(val, dict)
        node.meta["val"] = {k: own(v) for k, v in val.items()} if by_name else fx.node.map_aggregate(val, own)


def _symbolic(val: torch.Tensor, bases: dict[int, torch.Tensor]) -> torch.Tensor:
    """A fake value of symbolic sizes like `val`, in the storage of what stands for its own; operators make it, which
    install no guard."""
    key = val.untyped_storage()._cdata
    with compat.fake_mode_of([val]) or contextlib.nullcontext():
        if key not in bases:
            bases[key] = torch.empty_strided(val.shape, val.stride(), dtype=val.dtype, device=val.device)
            return bases[key]
        base = bases[key] if bases[key].dtype == val.dtype else bases[key].view(val.dtype)
        return base.as_strided(val.shape, val.stride(), val.storage_offset())


def copy_chain(graph: fx.Graph, chain: Iterable[fx.Node], env: dict[fx.Node, fx.Node]) -> None:
    """Copy a topologically ordered chain of calls; `env` maps its outside inputs and receives its nodes."""
    refresh_values([copy_node(graph, node, env, PREFIX + node.name) for node in chain if node not in env])
