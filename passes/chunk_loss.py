"""Decide in how many chunks of tokens a joint graph's logits are computed, and do it.

`chunk_loss(joint, num_fwd_outputs, …)` runs before PyTorch's partitioner cuts the graph. It returns an edited copy, or
the graph itself where logits stay whole, with the decision for the report.
"""

from dataclasses import dataclass, replace

import torch
from torch import fx

from fxcompress import compat
from fxcompress.options import Options
from fxcompress.passes.alias import nbytes_of
from fxcompress.passes.chunk_counts import counts, extra_s, usual_count
from fxcompress.passes.copy_graph import copy_graph
from fxcompress.passes.find_logits import large_products, normalizes
from fxcompress.passes.find_loss import find_loss
from fxcompress.passes.find_saved import layer_of, source_of
from fxcompress.passes.fingerprint import fingerprint
from fxcompress.passes.joint_outputs import strip_outputs
from fxcompress.passes.linear_in import depends_on_tangents
from fxcompress.passes.loss_region import Declined, Region
from fxcompress.passes.ops import op_name
from fxcompress.passes.rewrite_loss import rewrite_loss
from fxcompress.passes.splice import inline
from fxcompress.passes.token_rows import Unchunkable
from fxcompress.passes.write_chunk import PREFIX
from fxcompress.plan import LossDecision, Plan

LEAST_NBYTES = 16 * 2**20
"""Smaller logits are left whole under `auto`: nothing is gained."""


@dataclass(frozen=True, slots=True)
class Chunked:
    """A joint graph whose logits are chunked; `extra` outputs stand behind the user's forward outputs."""

    gm: fx.GraphModule
    extra: int
    decision: LossDecision


@dataclass(frozen=True, slots=True)
class Sought:
    """A joint graph's fingerprint, and an edited copy with the region of its logits in it, or why there is none.

    `gm` is the graph itself where nothing is as large as logits.
    """

    key: str
    gm: fx.GraphModule
    found: Region | Declined | None


def seek_logits(joint: fx.GraphModule) -> Sought:
    """Look for logits of `LEAST_NBYTES` or more; the graph is not edited."""
    return Sought(fingerprint(joint), *_find(joint, LEAST_NBYTES))


def budget_counts(sought: Sought) -> tuple[int, ...]:
    """The numbers of chunks that a budget chooses from, rising; empty where there is nothing to choose."""
    return counts(sought.found) if isinstance(sought.found, Region) else ()


def decides_alone(options: Options) -> bool:
    """Whether options state the number of chunks, so that a budget does not choose it."""
    return options.loss_chunks != "auto" or "chunk_loss" in options.disable_passes


def chunk_loss(joint: fx.GraphModule, num_fwd_outputs: int, options: Options, plan: Plan | None = None) -> Chunked:
    """Chunk the logits of a joint graph; it is not edited.

    Args:
        joint: the graph, forward outputs first.
        num_fwd_outputs: how many of its outputs are the user's.
        options: `loss_chunks` asks for a number of chunks.
        plan: a plan to replay, which states it.
    """
    if (options.loss_chunks == 0 and plan is None) or "chunk_loss" in options.disable_passes:
        return Chunked(joint, 0, LossDecision(reason="off"))
    key = fingerprint(joint)
    request = options.loss_chunks
    if plan is not None:
        request = next((graph.loss.chunks for graph in plan.graphs if graph.loss.graph == key), 0)
        if request == 0:
            return Chunked(joint, 0, next((g.loss for g in plan.graphs if g.loss.graph in (key, "")), LossDecision()))
    least = LEAST_NBYTES if request == "auto" else 1
    sought = Sought(key, *_find(joint, least))
    usual = usual_count(sought.found) if isinstance(sought.found, Region) else 0
    return chunk_sought(joint, sought, num_fwd_outputs, options, usual if request == "auto" else int(request), least)


def chunk_sought(
    joint: fx.GraphModule,
    sought: Sought,
    num_fwd_outputs: int,
    options: Options,
    chunks: int,
    least_nbytes: int = LEAST_NBYTES,
) -> Chunked:
    """Chunk logits that were looked for; what `sought` holds is edited, and stands for this number of chunks alone.

    Args:
        joint: the graph that they were looked for in, which is returned if they stay whole.
        sought: what was found.
        num_fwd_outputs, options: as for `chunk_loss`.
        chunks: how many; 0: a budget chose none.
        least_nbytes: what was looked for.
    """
    key, gm, found = sought.key, sought.gm, sought.found
    if found is None:
        return Chunked(joint, 0, LossDecision(key, reason="no product of this size leads to a loss"))
    if isinstance(found, Declined):
        return Chunked(joint, 0, _decision(key, found.start, 0, found.reason))
    if chunks == 0:
        return Chunked(joint, 0, _decision(key, found.start, 0, "the budget is met without"))
    if chunks < 2:
        return Chunked(joint, 0, _decision(key, found.start, 0, "too few tokens for chunks to pay"))
    fused = options.inner == "inductor"
    outline = fused and "outline" not in options.disable_passes and _is_static(found)
    decision = _decision(key, found.start, chunks, "", extra_s(found, chunks))
    try:
        extra = rewrite_loss(gm, found, chunks, num_fwd_outputs, fused=fused, outline=outline)
    except (Unchunkable, RuntimeError) as reason:
        # Operators refuse fake tensors of wrong sizes with a RuntimeError; the graph itself was not touched.
        return Chunked(joint, 0, _decision(key, found.start, 0, f"chunks cannot be written: {reason}"))
    return Chunked(gm, extra, replace(decision, reason=_left_whole(gm.graph, least_nbytes)))


def _left_whole(graph: fx.Graph, least_nbytes: int) -> str:
    """Which other logits a graph still computes as a whole: one projection per graph is chunked."""
    tangents = depends_on_tangents(graph)
    found = [
        layer_of(node) or node.name
        for node in large_products(graph, least_nbytes)
        if node not in tangents and not node.name.startswith(PREFIX) and normalizes(node, tangents)
    ]
    return f"one projection per graph is chunked; whole: {', '.join(found)}" if found else ""


def _find(joint: fx.GraphModule, least_nbytes: int) -> tuple[fx.GraphModule, Region | Declined | None]:
    """An edited copy of a joint graph with the region in it, or why there is none; the graph itself if nothing is."""
    if not large_products(joint.graph, least_nbytes):
        return joint, None
    gm = copy_graph(joint)
    _expand_nll(gm.graph)
    return gm, find_loss(gm.graph, least_nbytes)


def cut_chunked(chunked: Chunked, cut: compat.Cutter) -> compat.Cutter:
    """Cuts a chunked graph; `cut` cuts the graph as it was."""
    start = cut.num_fwd_outputs
    return cut.of(chunked.gm, start + chunked.extra, finish=lambda pair: strip_outputs(pair[0], start, chunked.extra))


def _is_static(region: Region) -> bool:
    return all(isinstance(size, int) for node in region.rows for size in node.meta["val"].shape)


def _expand_nll(graph: fx.Graph) -> None:
    """Replace fused negative log likelihoods, which sum over tokens inside, by their definition."""
    for node in list(graph.nodes):
        if op_name(node) in ("nll_loss_forward", "nll_loss_backward"):
            _inline_definition(graph, node)
    for node in list(graph.nodes):
        if op_name(node) in ("new_full", "new_zeros"):
            # It reads dtype and device of its operand, not its values.
            val = node.meta["val"]
            filled = node.args[2] if op_name(node) == "new_full" else 0
            node.target, node.args = torch.ops.aten.full.default, (node.args[1], filled)
            node.kwargs = {"dtype": val.dtype, "device": val.device}


def _inline_definition(graph: fx.Graph, node: fx.Node) -> None:
    tensors = [arg for arg in node.args if isinstance(arg, fx.Node)]
    template = compat.trace_definition(node)
    with graph.inserting_before(node):
        results = inline(
            graph, template, tensors, [None] * (2 if op_name(node) == "nll_loss_forward" else 1), fresh=True
        )
    if op_name(node) == "nll_loss_backward":
        node.replace_all_uses_with(results[0])
    else:
        for user in list(node.users):
            user.replace_all_uses_with(results[int(user.args[1])])  # type: ignore[arg-type]
            graph.erase_node(user)
    graph.erase_node(node)


def _decision(key: str, start: fx.Node, chunks: int, reason: str, extra_s: float = 0.0) -> LossDecision:
    val = start.meta["val"]
    assert isinstance(val, torch.Tensor)
    return LossDecision(
        graph=key,
        chunks=chunks,
        reason=reason,
        shape=tuple(size if isinstance(size, int) else str(size) for size in val.shape),
        dtype=str(val.dtype).removeprefix("torch."),
        nbytes=nbytes_of(val),
        chunk_nbytes=nbytes_of(val) // max(chunks, 1),
        extra_s=extra_s,
        layer=layer_of(start),
        source=source_of(start),
    )
