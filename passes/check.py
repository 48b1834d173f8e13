"""The specification of a legal pair, checked after every rewrite.

`check(fw, bw, …)` raises `GraphError` naming node and rule. It covers what generated code would get
silently wrong: a placeholder whose target is another node's name, saved values whose order, name, shape, dtype or
stride differs between the sides, tensors without metadata, and predicates read from lossy values.
"""

import re

import torch
from torch import fx

from fxcompress.errors import GraphError
from fxcompress.passes.find_saved import handed_over, outputs, placeholders

_PAYLOAD = re.compile(r"actcomp_\d")
_RESERVED = ("primals", "tangents", "fwd_rng_state", "seed_offset")


def check(fw: fx.GraphModule, bw: fx.GraphModule, num_fwd_outputs: int, user_outputs: list[object]) -> None:
    """Raise unless the pair keeps the partition contract.

    Args:
        fw, bw: the rewritten pair.
        num_fwd_outputs: how many forward outputs are the user's.
        user_outputs: the user's outputs before rewriting; they must be the same nodes.
    """
    for side, gm in (("forward", fw), ("backward", bw)):
        gm.graph.lint()
        _check_names(side, gm)
    for position, (now, before) in enumerate(zip(outputs(fw)[:num_fwd_outputs], user_outputs, strict=True)):
        if now is not before:
            raise GraphError(f"forward output {position} belongs to the user and changed from {before} to {now}")
    saved = handed_over(fw, num_fwd_outputs)
    unreturned = {node.name for node in fw.graph.nodes} - {node.name for node in saved}
    for node in placeholders(bw):
        if node.name in unreturned:
            raise GraphError(f"backward placeholder {node.name!r}: the forward computes it and does not return it")
    _check_sides(saved, placeholders(bw))


def _check_names(side: str, gm: fx.GraphModule) -> None:
    seen: set[str] = set()
    for node in gm.graph.nodes:
        if node.name in seen:
            raise GraphError(f"{side} node {node.name!r}: the name stands twice")
        seen.add(node.name)
        if node.op == "placeholder" and node.target != node.name:
            raise GraphError(f"{side} placeholder {node.name!r}: its target {node.target!r} is another name")
        if node.op == "call_function" and node.name.startswith("actcomp_"):
            if "val" not in node.meta:
                raise GraphError(f"{side} node {node.name!r}: no fake value")
            if any(word in node.name for word in _RESERVED):
                raise GraphError(f"{side} node {node.name!r}: PyTorch reads a meaning into this name")


def _check_sides(saved: list[fx.Node], incoming: list[fx.Node]) -> None:
    """Tensors in equal order with equal names and metadata; sizes come last forward and first backward."""
    tensors = [node for node in saved if isinstance(node.meta.get("val"), torch.Tensor)]
    first_size = next((i for i, node in enumerate(saved) if isinstance(node.meta.get("val"), torch.SymInt)), len(saved))
    for node in saved[first_size:]:
        if isinstance(node.meta.get("val"), torch.Tensor):
            raise GraphError(f"forward output {node.name!r}: a tensor stands after saved sizes")
    partners = [node for node in incoming if isinstance(node.meta.get("val"), torch.Tensor)][: len(tensors)]
    if len(partners) < len(tensors):
        raise GraphError(f"the forward saves {len(tensors)} tensors, the backward takes {len(partners)}")
    for left, right in zip(tensors, partners, strict=True):
        if left.name != right.name:
            raise GraphError(f"saved {left.name!r} meets backward placeholder {right.name!r}: names or order differ")
        a, b = left.meta["val"], right.meta["val"]
        if a.dtype != b.dtype or str(a.shape) != str(b.shape) or str(a.stride()) != str(b.stride()):
            raise GraphError(
                f"saved {left.name!r}: {a.dtype} {tuple(a.shape)} forward, {b.dtype} {tuple(b.shape)} backward"
            )
        if _PAYLOAD.match(left.name) and not a.is_contiguous():
            raise GraphError(f"payload {left.name!r} is not contiguous")
