"""Inductor's settings that our graphs want."""

from typing import Any

from fxcompress.compat.scheduler_passes import after_fusion_setting, keep_order_setting, passes_unset
from fxcompress.options import Options
from fxcompress.passes.realize import FOR_GPU


def settings(options: Options, *, on_gpu: bool) -> dict[str, Any]:
    """Patches of its config.

    Inductor holds memory otherwise: it lets a dead buffer wait for a later one of its size, up to a third of a step's
    peak (decision 6), and kernels for others to be fused with (decision 11), and runs what nothing needs yet (decision
    15). On a GPU it moves more bytes (decision 14), and its indices of codes cost more than reading them (decision
    17). On a CPU kernels are ordered where a budget is to be kept.
    """
    found: dict[str, Any] = {"allow_buffer_reuse": False}
    if "keep_order" not in options.disable_passes:
        found |= keep_order_setting()
    if on_gpu:
        found |= FOR_GPU
    split, order = (part not in options.disable_passes for part in ("split_loops", "order_launches"))
    order = order and (on_gpu or options.budget is not None)
    return found | after_fusion_setting(options.inductor_patches(), split=split and on_gpu, order=order)


def settings_undone() -> dict[str, Any]:
    """Patches for what Inductor would do without us, while a graph of ours is compiled; its defaults, on a CPU."""
    return {"allow_buffer_reuse": True, **passes_unset()}
