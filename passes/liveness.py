"""Live bytes over one training step, and their peak.

`find_peak(fw, bw, num_fwd_outputs, machine)` simulates the two graphs in their order: a storage is allocated by its
first node, freed after its last use, and saved tensors live across the turn. On a machine that fuses, pointwise
operators that only feed other fusible operators are computed where they are read and never stored, as Inductor does; a
pointwise result takes over an operand of its size that dies with it. Tensors
that the caller holds (parameters, inputs) and the gradients that the backward returns are not counted. A model of
memory, exact for an interpreter (`fused=False`). Read-only.
"""

import operator
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import fx

from fxcompress.facts import Peak
from fxcompress.passes import devices
from fxcompress.passes.alias import hint, storage_key
from fxcompress.passes.find_saved import handed_over, placeholders
from fxcompress.passes.join_steps import Buffer, Step, join_in_a_row, join_side_by_side
from fxcompress.passes.merge_sums import find_merged
from fxcompress.passes.ops import GRADIENT, MAY_COPY, is_view, op_name
from fxcompress.passes.phases import Phase, cut_phases, phase_of
from fxcompress.passes.realize import Expression, expression_of, load, stores
from fxcompress.passes.traits import buffers_of
from fxcompress.passes.workspace import workspace_nbytes


@dataclass(frozen=True, slots=True)
class Machine:
    """How the inner compiler runs a graph.

    Attributes:
        fused: it fuses pointwise operators.
        channels_last: it computes convolutions with channels last, whatever the strides say.
        ends_rows: a function of many loops on a CPU ends where memory is short (`order_launches.end_rows`).
    """

    fused: bool
    channels_last: bool = False
    ends_rows: bool = False


@dataclass(frozen=True, slots=True)
class Half:
    """A forward or a backward as `simulate` takes it: what it finds alive, what never counts, what it never frees."""

    steps: list[Step]
    given: dict[Buffer, int]
    uncounted: set[Buffer]
    kept: set[Buffer]


def find_peak(fw: fx.GraphModule, bw: fx.GraphModule, num_fwd_outputs: int, machine: Machine) -> Peak:
    """Predict the live-bytes curve of one forward and backward. Symbolic sizes count by their hint.

    Args:
        fw, bw: the pair.
        num_fwd_outputs: how many forward outputs are the user's.
        machine: how they are run.
    """
    return _peak(*find_halves(fw, bw, num_fwd_outputs, machine), handed_over(fw, num_fwd_outputs))


def find_cut_peak(joint: fx.Graph, saved: Sequence[fx.Node], num_fwd_outputs: int, machine: Machine) -> Peak:
    """The same for a joint graph that PyTorch would cut so that `saved` is handed over, without cutting it."""
    forward, backward = cut_phases(joint, saved, num_fwd_outputs)
    held = {key for node in forward.inputs for key, _ in buffers_of(node)}
    kept = {key for out in forward.returned for key, _ in buffers_of(out)}
    incoming = {key: size for node in backward.inputs for key, size in buffers_of(node)}
    gradients = {key for out in backward.returned for key, _ in buffers_of(out)}
    before = Half(find_steps(forward, machine), {}, held, kept)
    return _peak(before, Half(find_steps(backward, machine), incoming, held | gradients, set()), saved)


def find_halves(fw: fx.GraphModule, bw: fx.GraphModule, num_fwd_outputs: int, machine: Machine) -> tuple[Half, Half]:
    """The two halves of a step. Saved tensors are kept in the forward and given in the backward.

    Args: as for `find_peak`.
    """
    forward, backward = phase_of(fw), phase_of(bw)
    early = _early_gradients(fw, bw, num_fwd_outputs) if machine.fused else []
    held = {key for node in (*forward.inputs, *early) for key, _ in buffers_of(node)}
    kept = {key for out in forward.returned for key, _ in buffers_of(out)}
    names = {out.name for out in handed_over(fw, num_fwd_outputs) if storage_key(out) in held}
    incoming = {key: size for node in backward.inputs if node.name not in names for key, size in buffers_of(node)}
    excluded = {key for node in backward.inputs if node.name in names for key, _ in buffers_of(node)}
    gradients = {key for out in backward.returned for key, _ in buffers_of(out)}
    return (
        Half(find_steps(forward, machine), {}, held, kept),
        Half(find_steps(backward, machine), incoming, excluded | gradients, set()),
    )


def _early_gradients(fw: fx.GraphModule, bw: fx.GraphModule, num_fwd_outputs: int) -> list[fx.Node]:
    """Saved forward nodes that are gradients already, and that the backward returns in the same memory."""
    by_name = {node.name: node for node in placeholders(bw)}
    saved = handed_over(fw, num_fwd_outputs)
    marked = [node for node in saved if node.meta.get("actcomp") == GRADIENT and node.name in by_name]
    return [node for node in marked if _is_returned(by_name[node.name])]


def _is_returned(node: fx.Node) -> bool:
    """Whether `node` only ends as an output of its size: viewed, scaled, or with another gradient added to it."""
    while len(node.users) == 1:
        (user,) = node.users
        if user.op == "output":
            return True
        updated = op_name(user) in ("mul", "add") and user.meta["val"].dtype is node.meta["val"].dtype
        if not (updated or is_view(user)):
            return False
        node = user
    return False


def _peak(before: Half, after: Half, handed: Sequence[fx.Node]) -> Peak:
    forward, backward = (simulate(half.steps, half.given, half.uncounted, half.kept) for half in (before, after))
    saved = {key: size for node in handed for key, size in buffers_of(node)}
    resident = sum(size for key, size in saved.items() if key not in before.uncounted)
    empty = ("", 0)
    top_forward = max(forward, key=lambda item: item[1], default=empty)
    top_backward = max(backward, key=lambda item: item[1], default=("", resident))
    where = f"forward:{top_forward[0]}" if top_forward[1] > top_backward[1] else f"backward:{top_backward[0]}"
    return Peak(
        peak_bytes=max(top_forward[1], top_backward[1]),
        at=where,
        forward_peak_bytes=top_forward[1],
        backward_peak_bytes=top_backward[1],
        timeline=tuple(size for _, size in forward + backward),
    )


def _is_scattered_into(node: fx.Node, phase: Phase) -> bool:
    """Whether `node` is a constant that only a scatter reads, to add to it in place."""
    if phase.traits(node).inputs or node in phase.leaving:
        return False
    users = phase.users(node)
    return len(users) == 1 and all(phase.traits(user).scatters and user.args[0] is node for user in users)


def is_fused_away(node: fx.Node, phase: Phase) -> bool:
    """Whether every reader in this phase is a kernel that Inductor generates. Views follow what they view."""
    pending = [node]
    while pending:
        value = pending.pop()
        if value in phase.leaving:
            return False
        for user in value.users:
            if user in phase.members:
                traits = phase.traits(user)
                if traits.view:
                    pending.append(user)
                elif traits.opaque:
                    return False
    return True


def find_steps(phase: Phase, machine: Machine) -> list[Step]:
    """Memory-touching nodes in order; reads through inlined nodes count where the reader runs."""
    through: dict[fx.Node, frozenset[Buffer]] = {node: phase.traits(node).keys for node in phase.inputs}
    steps: list[Step] = []
    seen: set[Buffer] = set()
    taken: dict[fx.Node, Expression] = {}
    merged = find_merged(phase) if machine.fused and _on_cpu(phase) else {}
    sums = set(merged.values())
    for node in phase.nodes:
        traits = phase.traits(node)
        found = [through[arg] for arg in traits.inputs if arg in through]
        reads = found[0] if len(found) == 1 else frozenset[Buffer]().union(*found)
        if node.op != "call_function":
            through[node] = traits.keys
        elif node.target is operator.getitem:
            # One element keeps no other alive.
            through[node] = traits.keys & reads or reads
        elif node in merged or (node not in sums and _runs_nothing(node, phase, machine, reads, taken)):
            through[node] = reads
        else:
            made = tuple(item for item in traits.results if item[0] not in seen)
            seen.update(key for key, _ in made)
            through[node] = traits.result_keys or reads
            workspace = workspace_nbytes(node, channels_last=machine.channels_last)
            generated = machine.fused and not traits.opaque and node not in sums
            read = tuple(sorted(reads))
            at_place = generated and not traits.scatters
            count = _elements_of(node.meta.get("val")) if at_place else None
            steps.append(Step(node.name, made, read, generated, workspace, read if at_place else (), count))
    if not machine.fused:
        return steps
    joined = join_side_by_side(steps, frozenset(key for node in phase.returned for key in phase.traits(node).keys))
    return joined if machine.ends_rows or not _on_cpu(phase) else join_in_a_row(joined)


def _elements_of(val: object) -> int | None:
    """How many elements a result has, each of a tuple's the same number; None where they differ."""
    items = val if isinstance(val, (tuple, list)) else (val,)
    counts = {hint(item.numel()) for item in items if isinstance(item, torch.Tensor)}
    return counts.pop() if len(counts) == 1 else None


def _on_cpu(phase: Phase) -> bool:
    vals = (node.meta.get("val") for node in phase.nodes)
    return next((devices.is_on_cpu(val) for val in vals if isinstance(val, torch.Tensor)), False)


def _runs_nothing(
    node: fx.Node, phase: Phase, machine: Machine, reads: frozenset[Buffer], taken: dict[fx.Node, Expression]
) -> bool:
    """Whether no memory is touched at `node`; `taken` receives what its readers compute instead."""
    traits = phase.traits(node)
    if traits.view and (machine.fused or _views_input(node, phase)):
        viewed = next(iter(traits.inputs), node)
        taken[node] = taken.get(viewed) or load(viewed)
        return True
    if machine.fused and _is_scattered_into(node, phase):
        return True
    if not machine.fused or not (traits.pointwise and is_fused_away(node, phase)):
        return False
    expression = expression_of(node, traits, taken)
    if stores(node, expression, len(reads), phase):
        return False
    taken[node] = expression
    return True


def _views_input(node: fx.Node, phase: Phase) -> bool:
    """A `reshape` may copy: only a shared storage makes it free. Views of what was decoded still state the storage of
    what was encoded."""
    if op_name(node) not in MAY_COPY:
        return True
    keys = frozenset[Buffer]().union(*(phase.traits(arg).result_keys for arg in node.all_input_nodes))
    return phase.traits(node).result_keys <= keys


def simulate(
    steps: list[Step], live: dict[Buffer, int], uncounted: set[Buffer], kept: set[Buffer]
) -> list[tuple[str, int]]:
    """Live bytes at each step: `live` at the start, `uncounted` never counted, `kept` never freed."""
    last: dict[Buffer, int] = {}
    for i, step in enumerate(steps):
        for key in (*step.read, *(key for key, _ in step.made)):
            last[key] = i
    live = {key: size for key, size in live.items() if key not in uncounted}
    total = sum(live.values())
    curve = []
    for i, step in enumerate(steps):
        dying = [key for key in step.read if last[key] == i and key in live and key not in kept]
        made = [(key, size) for key, size in step.made if key not in uncounted and key not in live]
        reusable = {live[key] for key in dying if key in step.over}
        fresh = sum(size for _, size in made)
        reused = next((size for _, size in made if size in reusable), 0)
        curve.append((step.name, total + fresh - reused + step.workspace_bytes))
        total += fresh
        live.update(made)
        for key in dying + [key for key, _ in made if last[key] == i and key not in kept]:
            total -= live.pop(key, 0)
    return curve
