"""Twins: for a node of the backward that depends on no gradient, the forward node that holds the same value.

`find_twins` begins, `twin_of` finds a twin or makes one, and `read_saved` saves it and has the backward read it instead
of computing it. Exact: it moves a computation, and changes none.
"""

import operator
from dataclasses import dataclass

import torch
from torch import fx

from fxcompress.compat import OpOverload
from fxcompress.passes.find_saved import SavedPair, outputs, placeholders
from fxcompress.passes.ops import op_name
from fxcompress.passes.splice import PREFIX, add_saved, copy_node

Key = tuple[object, ...]


@dataclass(slots=True)
class Twins:
    """A pair, and what is known of it so far."""

    fw: fx.GraphModule
    bw: fx.GraphModule
    num_fwd_outputs: int
    env: dict[fx.Node, fx.Node]
    """Backward nodes, at first placeholders, with the forward nodes that hold the same values."""
    table: dict[Key, fx.Node]
    """Forward calls by operator and arguments."""
    partners: dict[fx.Node, fx.Node]
    """The backward's placeholders of saved forward nodes."""
    front: SavedPair | None
    """The first saved tensor."""


def find_twins(fw: fx.GraphModule, bw: fx.GraphModule, pairs: list[SavedPair], num_fwd_outputs: int) -> Twins:
    """The twins of the backward's placeholders."""
    by_name = {out.name: out for out in outputs(fw) if isinstance(out, fx.Node)}
    env = {node: by_name[node.name] for node in placeholders(bw) if node.name in by_name}
    table = {_key(node, node.args, node.kwargs): node for node in fw.graph.nodes if node.op == "call_function"}
    partners = {pair.fw: pair.bw for pair in reversed(pairs)}
    return Twins(fw, bw, num_fwd_outputs, env, table, partners, pairs[0] if pairs else None)


def twin_of(twins: Twins, node: fx.Node) -> fx.Node | None:
    """The forward node equal to backward `node`, found or made; None if its inputs are not all known there."""
    env, waiting = twins.env, [node]
    while waiting:
        current = waiting[-1]
        if current in env:
            waiting.pop()
            continue
        if current.op != "call_function" or not _repeatable(current):
            return None
        missing = next((arg for arg in current.all_input_nodes if arg not in env), None)
        if missing is None:
            env[current] = _repeated(twins, current)
        else:
            waiting.append(missing)
    return env[node]


def read_saved(twins: Twins, node: fx.Node, twin: fx.Node, name: str) -> str:
    """Read backward `node` from its saved `twin` instead of computing it; returns the name it is saved under."""
    partner = twins.partners.get(twin)
    if partner is None:
        twin._rename(PREFIX + name)
        partner = twins.partners[twin] = add_saved(twins.fw, twins.bw, twin, twins.num_fwd_outputs, twins.front)
        position = twins.num_fwd_outputs if twins.front is None else twins.front.position
        twins.front = SavedPair(position, twin, partner)
    node.replace_all_uses_with(partner)
    return partner.name


def _key(node: fx.Node, args: object, kwargs: object) -> Key:
    return (node.target, repr(args), repr(kwargs))


def _repeated(twins: Twins, node: fx.Node) -> fx.Node:
    """The twin of a node whose inputs have theirs."""
    env = twins.env
    if _is_times_one(node):
        return env[node.args[0]]  # type: ignore[index]
    args = fx.map_arg(node.args, lambda arg: env[arg])
    kwargs = fx.map_arg(node.kwargs, lambda arg: env[arg])
    key = _key(node, args, kwargs)
    if key not in twins.table:
        known = [env[arg] for arg in node.all_input_nodes if env[arg].op != "placeholder"]
        latest = max(known or placeholders(twins.fw))
        with twins.fw.graph.inserting_after(latest):
            twins.table[key] = copy_node(twins.fw.graph, node, env, PREFIX + node.name)
    return twins.table[key]


def _is_times_one(node: fx.Node) -> bool:
    """`x * 1` of x's own dtype: the backward of softplus asks of it what the forward asks of x."""
    if op_name(node) != "mul" or not isinstance(node.args[0], fx.Node) or isinstance(node.args[1], fx.Node):
        return False
    value, result = node.args[0].meta.get("val"), node.meta.get("val")
    if not (isinstance(value, torch.Tensor) and isinstance(result, torch.Tensor)):
        return False
    return value.dtype is result.dtype and node.args[1] in (1, 1.0)


def _repeatable(node: fx.Node) -> bool:
    """Whether a copy of `node` computes the same elsewhere: no random operator, no higher-order operator."""
    if isinstance(node.target, OpOverload):
        return torch.Tag.nondeterministic_seeded not in node.target.tags
    return getattr(node.target, "__module__", "") == operator.getitem.__module__  # elements of tuples, symbolic sizes
