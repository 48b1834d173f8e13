"""Save values themselves, instead of what `save_normalized` and `fold_masks` made of them, where they are kept.

What is stored as it is comes back bit for bit, so that exact plans stay equal to PyTorch's own.
"""

from collections.abc import Sequence, Set
from dataclasses import replace

from torch import fx

from fxcompress.passes.choose import Encoding
from fxcompress.passes.find_saved import find_saved, outputs
from fxcompress.passes.pair_writer import PairWriter, call, writer_of
from fxcompress.passes.save_normalized import Replaced
from fxcompress.passes.splice import PREFIX, add_placeholder, copy_node, set_outputs


def restore_kept(
    fw: fx.GraphModule, bw: fx.GraphModule, replaced: Sequence[Replaced], kept: Set[str], num_fwd_outputs: int
) -> int:
    """Save the values again, in the same places, whose stand-ins are `kept`; returns how many.

    Args:
        fw, bw: the pair, edited in place.
        replaced: what `save_normalized` and `fold_masks` did.
        kept: names of what is stored as it is.
        num_fwd_outputs: how many forward outputs are the user's.
    """
    pairs = {pair.bw.name: pair for pair in find_saved(fw, bw, num_fwd_outputs=num_fwd_outputs)}
    again = [each for each in replaced if each.name in kept]
    for each in again:
        pair, outs = pairs[each.name], outputs(fw)
        each.original._rename(PREFIX + each.original.name)
        partner = add_placeholder(bw, each.original, each.original.name, pair.bw)
        each.rebuilt.replace_all_uses_with(partner)
        set_outputs(fw, [*outs[: pair.position], each.original, *outs[pair.position + 1 :]])
    for each in again:
        if each.mask is not None and each.compared is not None:
            _ask_again(writer_of(fw, bw, num_fwd_outputs), each.mask, each.compared)
    bw.graph.eliminate_dead_code()
    fw.graph.eliminate_dead_code()
    for each in again:
        bw.graph.erase_node(pairs[each.name].bw)
    return len(again)


def at_their_places(
    fw: fx.GraphModule, bw: fx.GraphModule, encodings: Sequence[Encoding], num_fwd_outputs: int
) -> tuple[Encoding, ...]:
    """The encodings, with the places among the forward's outputs where their tensors stand now: what a mask is asked of
    may take an input that was not saved."""
    pairs = {pair.bw: pair for pair in find_saved(fw, bw, num_fwd_outputs=num_fwd_outputs)}
    return tuple(
        replace(each, storage=replace(each.storage, members=tuple(pairs[member.bw] for member in each.storage.members)))
        for each in encodings
    )


def _ask_again(writer: PairWriter, mask: fx.Node, compared: fx.Node) -> None:
    """Ask the mask of what PyTorch's backward asks it of, computed again as it does."""
    with writer.bw.graph.inserting_before(mask):
        asked = call(writer.bw, mask.target, (_copied(writer, compared, {}), 0), mask)  # type: ignore[arg-type]
    mask.replace_all_uses_with(asked)
    writer.bw.graph.erase_node(mask)


def _copied(writer: PairWriter, node: fx.Node, env: dict[fx.Node, fx.Node]) -> fx.Node:
    """The forward's `node` in the backward, computed from what is saved."""
    if node not in env:
        if node in writer.known or node.op != "call_function":
            env[node] = writer.lying_as(node, writer.save(node))
        else:
            for argument in node.all_input_nodes:
                _copied(writer, argument, env)
            copy_node(writer.bw.graph, node, env, f"{PREFIX}again_{node.name}")
    return env[node]
