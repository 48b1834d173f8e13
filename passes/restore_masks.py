"""Compute masks in the backward again that were to be saved besides values that are kept as they are in the end.

`save_predicates` saves what the backward asks of a value that may become lossy. Where a plan then keeps the value, as
one with room to spare does, the answer can be had from it, as PyTorch has it: saved, it would take bytes, and on a
CPU more time than the rest of such a plan. Exact.
"""

from collections import Counter
from collections.abc import Mapping, Set
from dataclasses import replace

from torch import fx

from fxcompress.compat import OpOverload
from fxcompress.passes.alias import storage_key
from fxcompress.passes.choose import SHARED, Choice, Encoding
from fxcompress.passes.find_saved import SavedPair, find_saved
from fxcompress.passes.ops import is_predicate, op_name
from fxcompress.passes.splice import drop_unused
from fxcompress.plan import KEEP, Decision

_SAME = frozenset(["detach", "alias"])


def restore_masks(
    fw: fx.GraphModule, bw: fx.GraphModule, choice: Choice, masks: Set[str], num_fwd_outputs: int
) -> Choice:
    """The choice in which masks of kept values are `shared` with those and take no bytes.

    Args:
        fw, bw: the pair, edited in place.
        choice: what was decided; of its `keep` values, those that are saved themselves count.
        masks: names of the saved masks that `save_predicates` made.
        num_fwd_outputs: how many forward outputs are the user's.
    """
    pairs = find_saved(fw, bw, num_fwd_outputs=num_fwd_outputs)
    kept = {decision.tensor.name for decision in choice.decisions if decision.codec == KEEP} - masks
    views = Counter(storage_key(pair.fw) for pair in pairs)
    values = {_source(pair.fw): pair.bw for pair in pairs if pair.bw.name in kept}
    restored: dict[str, str] = {}
    for pair in pairs:
        alone = pair.bw.name in masks and views[storage_key(pair.fw)] == 1
        value = _asked(pair.fw) if alone else None
        if value is not None and value in values and pair.bw.users:
            restored[pair.bw.name] = values[value].name
            pair.bw.replace_all_uses_with(_again(bw, pair, values[value]))
    if not restored:
        return choice
    drop_unused(fw, bw, find_saved(fw, bw, num_fwd_outputs=num_fwd_outputs))
    left = {pair.bw.name: pair for pair in find_saved(fw, bw, num_fwd_outputs=num_fwd_outputs)}
    encodings = [e for e in choice.encodings if e.storage.members[0].bw.name not in restored]
    return Choice(_decided(choice, restored), tuple(_moved(encoding, left) for encoding in encodings))


def _asked(mask: fx.Node) -> fx.Node | None:
    """The value of which `mask` is a predicate, of nothing else."""
    inputs = mask.all_input_nodes
    direct = isinstance(mask.target, OpOverload) and is_predicate(mask) and inputs == [mask.args[0]]
    return _source(inputs[0]) if direct and not mask.kwargs else None


def _source(value: fx.Node) -> fx.Node:
    while op_name(value) in _SAME:
        value = value.all_input_nodes[0]
    return value


def _again(bw: fx.GraphModule, pair: SavedPair, value: fx.Node) -> fx.Node:
    assert isinstance(pair.fw.target, OpOverload)
    with bw.graph.inserting_before(min(pair.bw.users)):
        node = bw.graph.call_function(pair.fw.target, (value, *pair.fw.args[1:]))
    node.meta = dict(pair.bw.meta)
    return node


def _decided(choice: Choice, restored: Mapping[str, str]) -> tuple[Decision, ...]:
    def of(decision: Decision) -> Decision:
        value = restored.get(decision.tensor.name)
        reason = f"computed again from {value}, which is kept"
        return decision if value is None else Decision(decision.tensor, SHARED, (), 0, reason)

    return tuple(map(of, choice.decisions))


def _moved(encoding: Encoding, pairs: Mapping[str, SavedPair]) -> Encoding:
    """With the positions that saved tensors have now."""
    members = tuple(pairs[pair.bw.name] for pair in encoding.storage.members)
    return replace(encoding, storage=replace(encoding.storage, members=members))
