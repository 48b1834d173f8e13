"""The backward of fused attention kernels in differentiable operators.

PyTorch's kernels have no second derivative, and how far their gradients depend on what is saved is one. A sample at a
time is computed, and computed again where it is differentiated, so that no more than one sample's attention matrices
are in memory. Dropout inside a kernel is left out: its mask cannot be had from outside.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils.checkpoint import checkpoint

from fxcompress.compat import OpOverload
from fxcompress.passes.ops import op_name

_KERNELS = frozenset(
    f"_scaled_dot_product_{kind}_attention{where}_backward"
    for kind, where in (("flash", "_for_cpu"), ("flash", ""), ("efficient", ""), ("cudnn", ""))
)


def differentiable(node: fx.Node) -> Callable[..., tuple[Tensor | None, ...]] | None:
    """What computes the same as `node`, with a derivative; None if `node` is no backward of a fused attention."""
    if op_name(node) not in _KERNELS or not isinstance(node.target, OpOverload):
        return None
    names = [argument.name for argument in node.target._schema.arguments]

    def backward(*args: Any, **kwargs: Any) -> tuple[Tensor | None, ...]:
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        wanted = bool(given.get("grad_input_mask", (False,))[-1])
        grads = attention_backward(
            given.get("grad_out", given.get("grad_out_")),  # type: ignore[arg-type]
            *(given[name] for name in ("query", "key", "value", "out", "logsumexp")),
            bias=given.get("attn_mask", given.get("attn_bias")),
            causal=bool(given.get("is_causal", False)),
            scale=given.get("scale"),
        )
        return (*grads[:3], grads[3] if wanted else None) if "grad_input_mask" in given else grads[:3]

    return backward


def attention_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    logsumexp: Tensor,
    *,
    bias: Tensor | None = None,
    causal: bool = False,
    scale: float | None = None,
) -> tuple[Tensor, ...]:
    """Gradients of query, key, value and bias (FlashAttention, Dao et al., 2022, algorithm 4, without its tiles).

    Args:
        grad, query, key, value, out: `[batch, heads, tokens, width]`; key and value may have fewer heads.
        logsumexp: of the scaled scores, `[batch, heads, tokens or more]`.
        bias: added to the scaled scores, or None.
        causal: whether a token sees no later one.
        scale: of the scores; 1/√width if None.
    """
    rest: Mapping[str, Any] = {"causal": causal, "scale": 1 / math.sqrt(query.shape[-1]) if scale is None else scale}
    bias = None if bias is None else bias.expand(*query.shape[:3], key.shape[2])
    lse = logsumexp.reshape(*query.shape[:2], -1)[..., : query.shape[2]]
    samples = []
    for n in range(query.shape[0]):
        tensors = [grad[n], query[n], key[n], value[n], out[n], lse[n], None if bias is None else bias[n]]
        samples.append(checkpoint(_sample, *tensors, use_reentrant=False, preserve_rng_state=False, **rest))
    kinds = (query, key, value, query if bias is None else bias)
    return tuple(
        torch.stack(parts).to(kind.dtype) for parts, kind in zip(zip(*samples, strict=True), kinds, strict=True)
    )


def _sample(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    bias: Tensor | None,
    causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    grad, query, key, value, out, lse = (t.float() for t in (grad, query, key, value, out, lse))
    shared = query.shape[0] // key.shape[0]
    keys, values = (t.repeat_interleave(shared, 0) for t in (key, value))
    scores = query @ keys.mT * scale
    if bias is not None:
        scores = scores + bias
    share = torch.exp(scores - lse[..., None])
    if causal:
        share = share.tril()
    change = share * (grad @ values.mT - (grad * out).sum(-1, keepdim=True))

    def gathered(t: Tensor) -> Tensor:
        return t.reshape(-1, shared, *t.shape[1:]).sum(1)

    return change @ keys * scale, gathered(change.mT @ query * scale), gathered(share.mT @ grad), change
