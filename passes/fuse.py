"""Compute a chain of pointwise operators and the encodes of what it reads or makes in one kernel.

An encode that is a kernel of ours (`pick_lowering`) reads its tensor once more, next to a generated kernel that reads
or writes it anyway: GELU's argument, the two of SwiGLU. So does a mask, which Inductor packs in a kernel of its own,
for it has fewer elements than what it is computed from. `fuse` takes such a chain out of Inductor's hands where that
costs nothing else. By count: each encode in it saves one read of its tensor; what the chain reads or makes, and another
generated kernel reads too, is lost as one read, for both might have been one kernel. Only where the sum is a gain.

Results stay what they were: the chain's arithmetic is Inductor's (`expressions`), payloads are `codec.encode` of what
is stored. Read-only; `write_fused` edits. For GPUs and static sizes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import fx

from fxcompress.codecs import lowering
from fxcompress.codecs.base import Codec
from fxcompress.codecs.chains import Chain
from fxcompress.codecs.order import memory_order
from fxcompress.passes.chain_traffic import Traffic
from fxcompress.passes.choose import Choice, Encoding
from fxcompress.passes.expressions import expression_of, rounded_product
from fxcompress.passes.grow_chain import Facts, compares, facts_of, grow_chain, inputs_of, is_mask
from fxcompress.passes.ops import op_name
from fxcompress.passes.same_place import readers_of, value_of
from fxcompress.passes.traits import is_opaque
from fxcompress.plan import ATEN, FUSED, TRITON

MOST_INPUTS, MOST_ENCODED, MOST_REPEATED = 4, 3, 8
"""Tensors that a kernel loads and encodes, all of which stand in registers, and short ones that it reads again."""
MOST_STEPS, MOST_MASKS = 24, 4
"""Operators and masks of a chain; each is unrolled for all elements of a thread, which takes time to compile."""
ROUNDED = frozenset("add sub sigmoid div tanh erf relu where".split())
"""Operators that end in no product: machine code of the kernel has no more fused products than of both alone."""


@dataclass(frozen=True, slots=True)
class Fusion:
    """A chain with its encodes.

    Attributes:
        inputs: what it reads from memory.
        nodes: what it computes, in the graph's order.
        stored: those of them that others read.
        encoded: positions in `Choice.encodings`.
        chain: the same in text.
    """

    inputs: tuple[fx.Node, ...]
    nodes: tuple[fx.Node, ...]
    stored: tuple[fx.Node, ...]
    encoded: tuple[int, ...]
    chain: Chain


def fuse(fw: fx.GraphModule, choice: Choice, num_fwd_outputs: int, *, tight: bool) -> tuple[Choice, tuple[Fusion, ...]]:
    """The choice with `FUSED` as lowering of all encodings that share a kernel with a chain, and the chains.

    Args:
        fw: the forward, before it is rewritten.
        choice: with lowerings picked.
        num_fwd_outputs: how many forward outputs are the user's.
        tight: whether no payload may be allocated while operands still stand that would be gone by then.
    """
    facts = facts_of(fw, choice.encodings, num_fwd_outputs)
    found: list[Fusion] = []
    seeds = [encoding.source for encoding in choice.encodings if _is_seed(encoding)]
    held: set[int] = set()
    for source in sorted(seeds, key=facts.order.__getitem__):
        fusion = None if facts.number[source] in held else _fusion_at(source, held, facts, tight=tight)
        if fusion is not None:
            held.update(fusion.encoded)
            facts.made.update(fusion.nodes)
            facts.stored.update(fusion.stored)
            found.append(fusion)
    numbers = {number for fusion in found for number in fusion.encoded}
    encodings = tuple(replace(e, lowering=FUSED) if i in numbers else e for i, e in enumerate(choice.encodings))
    names = {encodings[number].storage.members[0].bw.name for number in numbers}
    decisions = tuple(replace(d, lowering=FUSED) if d.tensor.name in names else d for d in choice.decisions)
    return Choice(decisions, encodings), tuple(found)


def _is_seed(encoding: Encoding) -> bool:
    """Whether it is encoded in a kernel that does nothing else."""
    source = encoding.source
    packed = encoding.lowering == ATEN and is_mask(source) and lowering.wanted(source.meta["val"])
    return encoding.lowering == TRITON or packed


def _fusion_at(source: fx.Node, held: set[int], facts: Facts, *, tight: bool) -> Fusion | None:
    """The chain around one encoded tensor, if it pays."""
    nodes = grow_chain(source, facts)
    full, short = inputs_of(nodes, facts)
    if not nodes or len(full) > MOST_INPUTS or len(short) > MOST_REPEATED or len(nodes) > MOST_STEPS:
        return None
    own = sorted(nodes, key=facts.order.__getitem__)
    values = [node for node in own if not is_mask(node)]
    encoded = _encoded_together(source, [*full, *values], nodes, held, facts)
    stored = [node for node in values if _is_wanted(node, nodes, encoded, facts)]
    masks = [node for node in own if is_mask(node)]
    packed = len(masks) <= MOST_MASKS and all(_packs(mask, encoded, facts) for mask in masks)
    if source not in [*encoded, *masks] or not packed:
        return None
    if _is_bound(own, stored, [*encoded, *masks], [*full, *short], facts):
        return None
    traffic = Traffic(nodes, [*full, *short], facts)
    if traffic.saved_nbytes(encoded, masks, stored) <= traffic.lost_nbytes([*full, *stored], encoded, held):
        return None
    dead = _dead_inputs(full, short, nodes, facts)
    over = _overwritten(stored, dead)
    late = masks or any(value in nodes for value in encoded)
    tiled = lowering.fills_tiles(_codecs_of(encoded, facts), own[0].meta["val"].numel())
    if (over and not tiled) or (tight and late and len(over) < len(dead)):
        return None
    numbers = tuple(facts.number[value] for value in (*encoded, *masks))
    chain = _chain_of(full, short, own, stored, encoded, over)
    return Fusion((*full, *short), tuple(own), tuple(stored), numbers, chain)


def _is_wanted(node: fx.Node, nodes: set[fx.Node], encoded: list[fx.Node], facts: Facts) -> bool:
    """Whether anybody but the chain's kernel reads a value of it."""
    if node in facts.returned or any(reader not in nodes for reader in readers_of(node)):
        return True
    return node in facts.number and node not in encoded


def _encoded_together(
    source: fx.Node, values: list[fx.Node], nodes: set[fx.Node], held: set[int], facts: Facts
) -> list[fx.Node]:
    """Those of a chain's values whose encodes the kernel of `source` can do too, that of `source` first."""
    found: list[fx.Node] = []
    for value in sorted(values, key=lambda value: value is not source):
        number = facts.number.get(value)
        if number is None or number in held or len(found) == MOST_ENCODED:
            continue
        encoding, val = facts.encodings[number], value.meta["val"]
        codecs = [*_codecs_of(found, facts), encoding.codec]
        fits = encoding.lowering in (ATEN, TRITON) and encoding.order == memory_order(val)
        if fits and (value not in nodes or _is_rounded(value)) and lowering.fits_chain(codecs, val.numel(), val.dtype):
            found.append(value)
    return found


def _packs(mask: fx.Node, encoded: list[fx.Node], facts: Facts) -> bool:
    """Whether a kernel that also quantizes `encoded` can make the bits of a mask."""
    encoding, val = facts.encodings[facts.number[mask]], mask.meta["val"]
    fits = lowering.fits_mask(encoding.codec, _codecs_of(encoded, facts), val.numel())
    return fits and encoding.order == memory_order(val)


def _codecs_of(encoded: list[fx.Node], facts: Facts) -> list[Codec]:
    return [facts.encodings[facts.number[value]].codec for value in encoded]


def _is_rounded(node: fx.Node) -> bool:
    """Whether a compiler rounds the result before an encode subtracts from it, or can be made to: a product it may
    contract, also one inside `exp` or behind a minus."""
    return node.meta["val"].dtype != torch.float32 or op_name(node) in ROUNDED or rounded_product(node, str) is not None


def _is_bound(
    nodes: list[fx.Node], stored: list[fx.Node], encoded: list[fx.Node], inputs: list[fx.Node], facts: Facts
) -> bool:
    """Whether the chain cannot run by itself: something else needs one of its nodes, or reads too early."""
    last = max(facts.order[value] for value in inputs)
    early = any(facts.order[reader] <= last for node in stored for reader in readers_of(node) if reader not in nodes)
    # What is rounded for its encode stands unrounded in the kernel, and did so for its readers if Inductor had one too.
    inner = any(
        node in encoded
        and node.meta["val"].dtype != torch.float32
        and any(reader in nodes and not compares(reader) for reader in readers_of(node))
        for node in nodes
    )
    elsewhere = any(node in facts.number and node not in encoded and facts.order[node] <= last for node in nodes)
    # A generated kernel may have computed it itself, unrounded, or contracted it with what follows.
    read = any(
        reader not in nodes and not is_opaque(reader) and not facts.is_behind_library(reader, node)
        for node in stored
        for reader in readers_of(node)
    )
    return early or inner or elsewhere or read or any(node in facts.kept for node in nodes)


def _dead_inputs(full: list[fx.Node], short: list[fx.Node], nodes: set[fx.Node], facts: Facts) -> list[fx.Node]:
    """Inputs that nobody reads behind the chain."""
    last = max(facts.order[value] for value in (*full, *short))
    dead = []
    for value in full:
        later = any(facts.order[reader] > last and reader not in nodes for reader in readers_of(value))
        held = value.op == "placeholder" or value in facts.returned or value in facts.kept
        if not (later or held):
            dead.append(value)
    return dead


def _overwritten(stored: list[fx.Node], dead: list[fx.Node]) -> dict[fx.Node, fx.Node]:
    """A dead input for each stored value, where there is one of its dtype: Inductor's kernels overwrite those too."""
    found: dict[fx.Node, fx.Node] = {}
    for node in stored:
        dtype = node.meta["val"].dtype
        fitting = [value for value in dead if value not in found.values() and value.meta["val"].dtype == dtype]
        if fitting:
            found[node] = fitting[0]
    return found


def _chain_of(
    full: list[fx.Node],
    short: list[fx.Node],
    nodes: list[fx.Node],
    stored: list[fx.Node],
    encoded: list[fx.Node],
    over: Mapping[fx.Node, fx.Node],
) -> Chain:
    names = {node: f"i{i}" for i, node in enumerate([*full, *short])} | {node: f"t{i}" for i, node in enumerate(nodes)}
    read = dict(names)
    steps: list[tuple[str, str]] = []

    def name_of(argument: fx.Node) -> str:
        return names[value_of(argument)]

    def read_name_of(argument: fx.Node) -> str:
        return read[value_of(argument)]

    compared = {value_of(argument) for node in nodes if compares(node) for argument in node.all_input_nodes}
    for node in nodes:
        steps.append((names[node], str(expression_of(node, read_name_of if compares(node) else name_of))))
        if node in compared or node in encoded:
            # What a reader of memory would see.
            read[node] = f"r{names[node]}"
            steps.append((read[node], _rounded(node, name_of, node in encoded)))
    return Chain(
        inputs=tuple(names[node] for node in (*full, *short)),
        steps=tuple(steps),
        stored=tuple(names[node] for node in stored),
        encoded=tuple(read[value] for value in encoded),
        masks=tuple(names[node] for node in nodes if is_mask(node)),
        repeated=tuple(names[node] for node in short),
        over=tuple((names[node], names[value]) for node, value in over.items()),
    )


def _rounded(node: fx.Node, name_of: Callable[[fx.Node], str], encoded: bool) -> str:
    name, dtype = name_of(node), node.meta["val"].dtype
    if dtype == torch.float32:
        return (rounded_product(node, name_of) if encoded else None) or name
    return f"{name}.to(tl.{str(dtype).removeprefix('torch.')}).to(tl.float32)"
