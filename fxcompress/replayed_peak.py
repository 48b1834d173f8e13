"""The peak of a pair as Inductor will run it on a CPU: lowered, and its allocations replayed.

The memory model (`passes.liveness`) repeats Inductor's rules and is fast, which ranking cuts needs; a budget promises a
number. So the pair that is about to be taken is lowered as it will be, short of compiling it.
"""

import logging
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from fxcompress import compat
from fxcompress.compat.lowering import Lowered, lower
from fxcompress.compat.scheduler_passes import settings_undone
from fxcompress.inductor_settings import settings
from fxcompress.operator_memory import called_nbytes
from fxcompress.options import Options
from fxcompress.passes import devices
from fxcompress.passes.alias import storage_key
from fxcompress.passes.copy_graph import copy_graph
from fxcompress.passes.cut_within import MOST_NODES
from fxcompress.passes.find_channels_last import find_channels_last
from fxcompress.passes.find_saved import outputs, placeholders
from fxcompress.passes.liveness import Half, Machine, find_halves
from fxcompress.passes.traits import buffers_of
from fxcompress.replay import Moment, replay

log = logging.getLogger(__name__)
Given = dict[str, tuple[str, int]]
Lowering = Callable[..., Lowered]
"""`lower` with the patches, the workspaces and the device of one compilation."""


@dataclass(frozen=True, slots=True)
class Peaks:
    """Bytes of the two halves of a step."""

    forward_bytes: int
    backward_bytes: int

    @property
    def peak_bytes(self) -> int:
        """The larger of the two."""
        return max(self.forward_bytes, self.backward_bytes)


def can_be_replayed(options: Options, *graphs: fx.GraphModule) -> bool:
    """Whether `replayed_peaks` may know; of a joint graph, False if it knows of no pair that it is cut into."""
    if options.inner != "inductor" or "replay_peak" in options.disable_passes:
        return False
    return sum(len(gm.graph.nodes) for gm in graphs) <= MOST_NODES and all(map(_is_simple, graphs))


def replayed_peaks(
    fw: fx.GraphModule, bw: fx.GraphModule, num_fwd_outputs: int, options: Options, *, plain: bool = False
) -> Peaks | None:
    """None where they cannot be told: Inductor does not run the pair, sizes are symbolic, it calls other graphs, is
    large or not on a CPU.

    Args:
        fw, bw: the pair, left as it is.
        num_fwd_outputs: how many forward outputs are the user's.
        options: what it will be compiled with.
        plain: it is PyTorch's own pair, compiled without us.
    """
    if not can_be_replayed(options, fw, bw):
        return None
    machine = Machine(True, bool(find_channels_last(fw)))
    theirs = {**compat.inductor_mode_options(options.mode), **options.inductor_patches()}
    patches = settings_undone() if plain else {**settings(options, on_gpu=False), **theirs}
    try:
        return _peaks(fw, bw, num_fwd_outputs, machine, patches)
    except Exception as error:
        # What a lowering may raise is any exception. A model of the peak remains.
        log.warning("the peak was not replayed: %s: %s", type(error).__name__, error)
        return None


def _peaks(fw: fx.GraphModule, bw: fx.GraphModule, count: int, machine: Machine, patches: Mapping[str, Any]) -> Peaks:
    def lowering(gm: fx.GraphModule, inputs: list[torch.Tensor], **how: Any) -> Lowered:
        return lower(gm, inputs, patches, workspace=called_nbytes, scalar=True, **how)

    halves = replay_pair(fw, bw, count, machine, lowering)
    return Peaks(*(max((moment.most_bytes for moment in moments), default=0) for moments in halves))


def replay_pair(
    fw: fx.GraphModule, bw: fx.GraphModule, count: int, machine: Machine, lowering: Lowering, *, block: int = 1
) -> tuple[list[Moment], list[Moment]]:
    """Live bytes line by line of the code for both graphs, which are left as they are.

    Args:
        fw, bw: the pair, of static sizes.
        count: how many forward outputs are the user's.
        machine: what the memory model knows of where it runs.
        lowering: called with graph, inputs, `is_backward`, and `user_outputs` or `donated`.
        block: what the allocator rounds up to, in bytes.
    """
    before, after = find_halves(fw, bw, count, machine)
    given = [node.meta["val"] for node in placeholders(fw)]
    user = range(count)
    forward = lowering(copy_graph(fw), given, is_backward=False, user_outputs=user)
    results = outputs(fw)
    made = [(name, node) for name, node in zip(forward.outputs, results, strict=True) if isinstance(node, fx.Node)]
    # Inductor hands over what it copied an input to, where it laid it out anew.
    copied = {node.name for name, node in made if name and node.op == "placeholder" and name != node.name}
    uncounted = [
        name for name, node in made if name and node.name not in copied and storage_key(node) in before.uncounted
    ]
    first = replay(
        forward.source,
        {},
        forward.result_nbytes,
        uncounted=uncounted,
        workspace_nbytes=forward.workspace_nbytes,
        block=block,
    )
    strides = {
        node.name: stride
        for node, stride in zip(results, forward.strides, strict=True)
        if isinstance(node, fx.Node) and stride is not None
    }
    inputs = [laid_out(node, strides) for node in placeholders(bw)]
    callers = (*placeholders(fw), *results[:count], *outputs(bw))
    held = {storage_key(node) for node in callers if isinstance(node, fx.Node)} - {None}
    donated = [i for i, node in enumerate(placeholders(bw)) if node.name in strides and storage_key(node) not in held]
    backward = lowering(copy_graph(bw), inputs, is_backward=True, donated=donated)
    then = replay(
        backward.source,
        _given(bw, after, copied),
        backward.result_nbytes,
        uncounted=[name for name in backward.outputs if name],
        workspace_nbytes=backward.workspace_nbytes,
        block=block,
    )
    return first, then


def _is_simple(gm: fx.GraphModule) -> bool:
    for node in gm.graph.nodes:
        val = node.meta.get("val")
        for item in val if isinstance(val, (tuple, list)) else (val,):
            if isinstance(item, torch.SymInt):
                return False
            if isinstance(item, torch.Tensor) and not (devices.is_on_cpu(item) and _is_static(item)):
                return False
        if node.op == "get_attr":
            return False
    return True


def _is_static(val: torch.Tensor) -> bool:
    return val.layout is torch.strided and all(isinstance(size, int) for size in val.shape)


def laid_out(node: fx.Node, strides: Mapping[str, tuple[int, ...]]) -> torch.Tensor:
    """What a backward is given: a saved tensor comes with the strides that the forward chose."""
    val: torch.Tensor = node.meta["val"]
    stride = strides.get(node.name)
    if stride is None or stride == tuple(val.stride()):
        return val
    return val.as_strided(val.shape, stride)


def _given(bw: fx.GraphModule, half: Half, copied: Set[str]) -> Given:
    """The saved tensors that are freed, as names of their storages with bytes; `copied` are inputs of the forward."""
    found: Given = {}
    for node in placeholders(bw):
        for key, nbytes in buffers_of(node):
            if node.name in copied:
                found[node.name] = (node.name, nbytes)
            elif key in half.given and key not in half.uncounted:
                found[node.name] = (str(key), half.given[key])
    return found
