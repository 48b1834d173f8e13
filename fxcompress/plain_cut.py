"""PyTorch's own cut of a joint graph: what a plan is compared with.

`torch_cut(cut, …)` makes it, `plain_step(cut, …)` says what a step under it needs, and `plain_partition` is it as a
partitioner. Nothing is rewritten.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx

from fxcompress import compat
from fxcompress.cut_to_budget import Cutter
from fxcompress.facts import Peak
from fxcompress.passes.estimate_cut import saved_nbytes
from fxcompress.passes.find_channels_last import find_channels_last
from fxcompress.passes.liveness import Machine, find_peak


@dataclass(frozen=True, slots=True)
class PlainStep:
    """What the step saves in bytes, and its predicted peak."""

    saved_bytes: int
    peak: Peak


def torch_cut(cut: Cutter, *, rebuild_more: bool) -> tuple[compat.Partition, int | None]:
    """PyTorch's cut, and the bytes that its default one saves; None if it did not ask what to save."""
    plain: list[int] = []

    def choose(joint: fx.Graph, info: compat.NodeInfo, torch_choice: compat.TorchChoice) -> list[fx.Node]:
        default = torch_choice(rebuild_more=False)
        plain.append(saved_nbytes(default))
        return torch_choice(rebuild_more=True) if rebuild_more else default

    with compat.choosing_saved_values(choose):
        pair = cut(rebuild_more=rebuild_more)
    return pair, plain[0] if plain else None


def plain_step(cut: Cutter, inner: str, num_fwd_outputs: int) -> PlainStep:
    """What a step needs under PyTorch's default cut, run by the inner compiler `inner`."""
    (fw, bw), saved = torch_cut(cut, rebuild_more=False)
    return PlainStep(saved or 0, find_peak(fw, bw, num_fwd_outputs, machine_of(fw, inner)))


def plain_partition(
    gm: fx.GraphModule,
    joint_inputs: Sequence[object],
    *,
    num_fwd_outputs: int,
    static_lifetime_input_indices: Sequence[int] | None = None,
    **kwargs: Any,
) -> compat.Partition:
    """PyTorch's default cut as a partitioner."""
    cut = functools.partial(
        compat.partition,
        gm,
        joint_inputs,
        num_fwd_outputs=num_fwd_outputs,
        static_lifetime_input_indices=static_lifetime_input_indices,
    )
    return torch_cut(cut, rebuild_more=False)[0]


def machine_of(fw: fx.GraphModule, inner: str) -> Machine:
    """How the inner compiler `inner` runs the pair that `fw` is the forward of."""
    fused = inner == "inductor"
    return Machine(fused, fused and bool(find_channels_last(fw)))
