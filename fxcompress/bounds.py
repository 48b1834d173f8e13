"""The controller of error bounds (COMET, Jin et al., VLDB 2022): as much error in an activation as a gradient admits.

    compiled = torch.compile(model, backend="actcomp", options={"codec": "bounded", "adaptive": True})
    for step, batch in enumerate(batches):
        if step % 1000 == 0:
            bounds.refresh(model, lambda: loss_of(model, batch))     # one plain step; nothing is compiled again
        ...

An error of variance v in each element of a product's operand x puts the variance v·‖g_k‖² on each element of the weight
gradient of output channel k, g being the gradient of the product's result. Errors within ±eb are spread evenly, so that
v = eb²/3, and zeros have none: with R the share of nonzero elements, σ_k² = R·eb²/3·‖g_k‖².
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fxcompress import ledger
from fxcompress.codecs.bounded import live

PRODUCTS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(slots=True)
class Measured:
    """What one plain step says about one product."""

    source: str
    """Path of the module that made its operand; empty for the model's own inputs."""
    nonzero: float
    """Share of the operand's elements that are not zero."""
    channel_norms: Tensor = field(default_factory=lambda: torch.zeros(0))
    """‖g_k‖ per output channel, fp32."""
    scale: float = 0.0
    """Mean magnitude of the weight's gradient, or of its momentum."""


def error_bound(sigma: float, channel_norms: Tensor, nonzero: float = 1.0) -> float:
    """The bound eb at which the weight gradient's error has the standard deviation `sigma`, over all its elements.

    Args:
        sigma: wanted standard deviation.
        channel_norms: ‖g_k‖ per output channel.
        nonzero: share of the operand's elements that are not zero.

    Returns:
        √3·sigma / (√nonzero · root mean square of the norms); infinity where no error does any harm.
    """
    harm = math.sqrt(nonzero) * float(channel_norms.double().square().mean().sqrt())
    return math.sqrt(3) * sigma / harm if harm else math.inf


def refresh(
    model: nn.Module,
    loss: Callable[[], Tensor],
    *,
    share: float = 0.01,
    momentum: Mapping[str, Tensor] | None = None,
) -> dict[str, float]:
    """Measure one plain step, and set the bounds of all tensors that plans of this process store under a key.

    Gradients, buffers and random state are left as they were. A tensor that no `nn.Linear` or convolution reads keeps
    its bound; one that several read gets the smallest.

    Args:
        model: the module that was compiled, itself not compiled.
        loss: runs `model` forward and returns its scalar loss.
        share: wanted standard deviation of a weight gradient's error, over the mean magnitude of the gradient.
        momentum: by name of the weight, to take the magnitude of instead, as COMET does.

    Returns:
        The bounds set, by key.
    """
    wanted: dict[str, float] = {}
    for product in measure(model, loss, momentum or {}).values():
        bound = error_bound(share * product.scale, product.channel_norms, product.nonzero)
        wanted[product.source] = min(bound, wanted.get(product.source, math.inf))
    found: dict[str, float] = {}
    for plan in ledger.reports():
        for decision in plan.decisions:
            key, layer = dict(decision.params).get("key"), decision.tensor.layer
            if isinstance(key, str) and key and 0 < wanted.get(layer, 0.0) < math.inf:
                found[key] = wanted[layer]
    for key, bound in found.items():
        live.set_bound(key, bound)
    return found


def measure(model: nn.Module, loss: Callable[[], Tensor], momentum: Mapping[str, Tensor]) -> dict[str, Measured]:
    """Run one plain step with hooks; returns what it says by path of the product."""
    made: dict[int, tuple[str, object]] = {}
    found: dict[str, Measured] = {}
    weights = {f"{path}.weight": m.weight for path, m in model.named_modules() if isinstance(m, PRODUCTS)}
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    hooks = [hook for path, module in model.named_modules() for hook in _hooks(path, module, made, found)]
    try:
        with torch.random.fork_rng():
            names = [name for name, weight in weights.items() if weight.requires_grad]
            gradients = torch.autograd.grad(loss(), [weights[name] for name in names], allow_unused=True)
    finally:
        for hook in hooks:
            hook.remove()
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
    for name, gradient in zip(names, gradients, strict=True):
        path = name.removesuffix(".weight")
        if path in found and gradient is not None:
            found[path].scale = float(momentum.get(name, gradient).abs().mean())
    return {path: product for path, product in found.items() if product.channel_norms.numel()}


def _hooks(
    path: str, module: nn.Module, made: dict[int, tuple[str, object]], found: dict[str, Measured]
) -> list[torch.utils.hooks.RemovableHandle]:
    def note_result(module: nn.Module, args: object, result: object) -> None:
        # The innermost module speaks first. Results stay alive, so that no address is used twice.
        made.setdefault(id(result), (path, result))

    def note_operand(module: nn.Module, args: tuple[Tensor, ...], result: Tensor) -> None:
        operand = args[0]
        source, _ = made.get(id(operand), ("", None))
        found[path] = Measured(source, float((operand != 0).float().mean()))
        if result.requires_grad:
            result.register_hook(  # type: ignore[no-untyped-call]
                lambda gradient: _note_gradient(found[path], module, gradient)
            )

    handles = [module.register_forward_hook(note_result)]
    if isinstance(module, PRODUCTS):
        handles.append(module.register_forward_hook(note_operand))
    return handles


def _note_gradient(product: Measured, module: nn.Module, gradient: Tensor) -> None:
    channels = -1 if isinstance(module, nn.Linear) else 1
    others = [dim for dim in range(gradient.dim()) if dim != channels % gradient.dim()]
    product.channel_norms = torch.linalg.vector_norm(gradient.float(), dim=others)
