"""Binary convolution: ±1 activations, ±1 weights with one scale per filter, clipped straight-through gradients."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Sign(torch.autograd.Function):
    """where(x >= 0, 1, -1) forward; backward passes the gradient where |x| <= 1."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Binarise; 0 goes to +1, so that there are exactly two levels."""
        ctx.save_for_backward(x)
        return torch.where(x >= 0, 1.0, -1.0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """The clip estimator."""
        (x,) = ctx.saved_tensors
        return torch.where(x.abs() <= 1, gradients[0], 0.0)


def sign(x: Tensor) -> Tensor:
    """±1 of the same shape, with the clip estimator as its gradient."""
    signs: Tensor = Sign.apply(x)  # type: ignore[no-untyped-call]
    return signs


class BinaryConv(nn.Module):
    """A 3x3 convolution of sign(x) with sign(w), times the mean |w| of each filter."""

    def __init__(self, inner: int, outer: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outer, inner, 3, 3))
        nn.init.kaiming_uniform_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, inner, side, side] to [batch, outer, side, side]."""
        signs = sign(x)
        weight_signs = sign(self.weight)
        # The scale multiplies the result, not the operand: both operands stay exactly two-valued.
        alpha = self.weight.abs().mean((1, 2, 3)).view(1, -1, 1, 1)
        return F.conv2d(signs, weight_signs, padding=1) * alpha
