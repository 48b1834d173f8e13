"""PyTorch's own cut of a joint graph: what a plan is compared with.

`plain_partition` makes it, as a partitioner; `plain_step(cut, …)` says what a step under it needs. Read-only.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx

from fxcompress import compat
from fxcompress.facts import Peak
from fxcompress.inductor_settings import orders_kernels
from fxcompress.options import Options
from fxcompress.passes.estimate_cut import saved_nbytes
from fxcompress.passes.find_channels_last import find_channels_last
from fxcompress.passes.liveness import Machine, find_cut_peak


@dataclass(frozen=True, slots=True)
class PlainStep:
    """What the step saves in bytes, and its predicted peak."""

    saved_bytes: int
    peak: Peak


def plain_step(cut: compat.Cutter, inner: str, num_fwd_outputs: int) -> PlainStep:
    """What a step needs under PyTorch's default cut, run by the inner compiler `inner`. No graph is extracted."""
    asked = cut.question()
    if asked is None:
        return PlainStep(0, Peak(0, "", 0, 0, ()))
    saved, gm = asked.torch_choice(rebuild_more=False), asked.joint.owning_module
    assert gm is not None
    return PlainStep(saved_nbytes(saved), find_cut_peak(asked.joint, saved, num_fwd_outputs, machine_of(gm, inner)))


def plain_partition(
    gm: fx.GraphModule,
    joint_inputs: Sequence[object],
    *,
    num_fwd_outputs: int,
    static_lifetime_input_indices: Sequence[int] | None = None,
    **kwargs: Any,
) -> compat.Partition:
    """PyTorch's default cut as a partitioner."""
    with compat.choosing_saved_values(lambda joint, info, torch_choice: torch_choice(rebuild_more=False)):
        return compat.partition(
            gm,
            joint_inputs,
            num_fwd_outputs=num_fwd_outputs,
            static_lifetime_input_indices=static_lifetime_input_indices,
            rebuild_more=False,
        )


def machine_of(gm: fx.GraphModule, inner: str, options: Options | None = None) -> Machine:
    """How the inner compiler `inner` runs a joint graph, or the pair that `gm` is the forward of.

    Args:
        gm: the graph.
        inner: "inductor" or "aot_eager".
        options: ours, with which it is compiled; None: without us.
    """
    fused = inner == "inductor"
    ends_rows = fused and options is not None and orders_kernels(options)
    return Machine(fused, fused and bool(find_channels_last(gm)), ends_rows)
