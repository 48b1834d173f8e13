"""Which of our passes Inductor's scheduler runs, as patches of its config.

Names of `torch._inductor.config`: `_pre_fusion_custom_pass`, `_post_fusion_custom_pass`, `combo_kernels`,
`reorder_for_peak_memory`: run in 2.11 and 2.13.
"""

from collections.abc import Mapping
from typing import Any

from fxcompress.compat.scheduler_bounds import KeepOrder
from fxcompress.compat.scheduling import AfterFusion, Workspace


def keep_order_setting() -> dict[str, Any]:
    """The config patch that keeps the order; none where the caller has a pass of this kind set."""
    from torch._inductor import config

    theirs = config._pre_fusion_custom_pass
    return {"_pre_fusion_custom_pass": KeepOrder()} if theirs is None or isinstance(theirs, KeepOrder) else {}


def settings_undone() -> dict[str, Any]:
    """Config patches for what Inductor does without us, while a graph of ours is compiled: its defaults on a CPU."""
    from torch._inductor import config

    found: dict[str, Any] = {"allow_buffer_reuse": True, "cpp.enable_tiling_heuristics": True}
    if isinstance(config._pre_fusion_custom_pass, KeepOrder):
        found["_pre_fusion_custom_pass"] = None
    if isinstance(config._post_fusion_custom_pass, AfterFusion):
        found |= {"_post_fusion_custom_pass": None, "reorder_for_peak_memory": True}
    return found


def after_fusion_setting(
    patches: Mapping[str, Any], *, split: bool, order: bool, workspace: Workspace
) -> dict[str, Any]:
    """The config patch that splits loops and orders fused kernels; none where the caller has a pass of this kind, and
    no order where kernels are combined behind it.

    Inductor's own reordering would run after it, by an estimate in which a group's scale counts once for every element
    of the group: 2.11 ran all decodes of attention's operands first in the backward of a ViT.

    Args:
        patches: the caller's own of Inductor's config.
        split: whether loops are split.
        order: whether kernels are ordered.
        workspace: as for `AfterFusion`.
    """
    from torch._inductor import config

    theirs = config._post_fusion_custom_pass
    combined = patches.get("combo_kernels", config.combo_kernels)
    if combined or not patches.get("reorder_for_peak_memory", config.reorder_for_peak_memory):
        order = False
    if not (split or order) or (theirs is not None and not isinstance(theirs, AfterFusion)):
        return {}
    ours = {"_post_fusion_custom_pass": AfterFusion(split=split, order=order, workspace=workspace)}
    return {**ours, "reorder_for_peak_memory": False} if order else ours
