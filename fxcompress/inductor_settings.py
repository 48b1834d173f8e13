"""Inductor's settings that our graphs want."""

from typing import Any

from fxcompress.compat.scheduler_passes import after_fusion_setting, keep_order_setting
from fxcompress.options import Options
from fxcompress.passes.realize import FOR_GPU
from fxcompress.passes.workspace import library_nbytes


def settings(options: Options, *, on_gpu: bool) -> dict[str, Any]:
    """Patches of its config.

    Inductor holds memory otherwise: it lets a dead buffer wait for a later one of its size, up to a third of a step's
    peak (decision 6), and kernels for others to be fused with (decision 11), and runs what nothing needs yet (decision
    15). On a GPU it moves more bytes (decision 14), and its indices of codes cost more than reading them (decision
    17). On a CPU it leaves loops scalar that read bits, whose places are no stretch of memory (decision 5).
    """
    found: dict[str, Any] = {"allow_buffer_reuse": False}
    if "keep_order" not in options.disable_passes:
        found |= keep_order_setting()
    found |= FOR_GPU if on_gpu else {"cpp.enable_tiling_heuristics": False}
    split = on_gpu and "split_loops" not in options.disable_passes
    order = orders_kernels(options)
    return found | after_fusion_setting(options.inductor_patches(), split=split, order=order, workspace=library_nbytes)


def orders_kernels(options: Options) -> bool:
    """Whether kernels are put in the order of the least peak, and rows of them ended on a CPU."""
    return "order_launches" not in options.disable_passes
