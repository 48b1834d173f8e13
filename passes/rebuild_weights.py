"""Rebuild in the backward what depends on parameters alone, instead of saving it.

Autocast copies of weights, binarised or normalized weights and constant masks are cheap functions of tensors that live
through the step anyway. `rebuild_weights` replays that function in the backward. Exact: the same operators on the same
values.
"""

from torch import fx
from torch.utils.checkpoint import CheckpointPolicy

from fxcompress.passes.find_saved import SavedPair, find_saved, placeholders
from fxcompress.passes.ops import MOVES, PRODUCTS, REDUCTIONS, op_name
from fxcompress.passes.splice import add_saved, copy_chain, drop_unused

MAX_CHAIN = 16
"""Longer functions of weights are saved: replaying them is no longer cheap."""
_CHEAP = (
    MOVES
    | (PRODUCTS & {"mul"})
    | REDUCTIONS - {"var_mean", "std_mean"}
    | frozenset(
        "zeros ones zeros_like ones_like new_zeros new_ones add sub div neg abs sqrt rsqrt where ge gt "
        "le lt eq ne full full_like scalar_tensor arange iota sign pow "
        "logical_and logical_or logical_not bitwise_and bitwise_or reciprocal maximum minimum clamp".split()
    )
)


def rebuild_weights(
    fw: fx.GraphModule, bw: fx.GraphModule, parameters: set[str], num_fwd_outputs: int
) -> tuple[str, ...]:
    """Replace saved functions of `parameters` (names of forward placeholders) by their replay; returns their names."""
    rebuilt = []
    for pair in find_saved(fw, bw, num_fwd_outputs=num_fwd_outputs):
        chain = _chain(pair.fw, parameters)
        if chain and pair.bw.users:
            _replay(fw, bw, pair, chain, num_fwd_outputs)
            rebuilt.append(pair.bw.name)
    if rebuilt:
        drop_unused(fw, bw, find_saved(fw, bw, num_fwd_outputs=num_fwd_outputs))
    return tuple(rebuilt)


def _chain(node: fx.Node, parameters: set[str]) -> list[fx.Node]:
    """Calls that compute `node` from parameters and constants alone, in order; empty if there is no such way."""
    found: dict[fx.Node, None] = {}
    stack = [node]
    while stack:
        current = stack.pop()
        if current.op == "placeholder" and current.name in parameters:
            continue
        if current.op != "call_function" or op_name(current) not in _CHEAP or _must_stay(current):
            return []
        found[current] = None
        if len(found) > MAX_CHAIN:
            return []
        stack.extend(arg for arg in current.all_input_nodes if arg not in found)
    return sorted(found)


def _must_stay(node: fx.Node) -> bool:
    """Whether a checkpoint's policy, or what the forward does to its operands, has the value saved and not computed
    again."""
    return node.meta.get("recompute") is CheckpointPolicy.MUST_SAVE


def _replay(
    fw: fx.GraphModule, bw: fx.GraphModule, pair: SavedPair, chain: list[fx.Node], num_fwd_outputs: int
) -> None:
    by_name = {node.name: node for node in placeholders(bw)}
    env: dict[fx.Node, fx.Node] = {}
    for node in {arg: None for call in chain for arg in call.all_input_nodes if arg.op == "placeholder"}:
        env[node] = by_name.get(node.name) or add_saved(fw, bw, node, num_fwd_outputs)
    with bw.graph.inserting_before(min(pair.bw.users)):
        copy_chain(bw.graph, chain, env)
    pair.bw.replace_all_uses_with(env[pair.fw])
