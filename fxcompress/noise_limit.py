"""A limit on the gradient's error that is tied to the noise of the minibatch.

The gradient of a minibatch is itself an estimate. GACT (Liu et al., ICML 2022) warns when compression adds more than a
tenth to its variance; this is the limit that says so as `max_error`.
"""

import math

from torch import nn

from fxcompress.errors import FxcompressError
from fxcompress.sensitivity import Run, gradients_quietly

SHARE = 0.1
"""Of the minibatch gradient's variance that compression may add."""


def noise_limit(model: nn.Module, first: Run, second: Run, *, share: float = SHARE) -> float:
    """What to give as `max_error` so that compression adds at most `share` of the minibatch gradient's own variance.

    Two halves of a batch give gradients g₁ and g₂; of their mean, the gradient of the batch, ‖g₁ - g₂‖²/4 estimates the
    variance without bias. The limit is √(share·variance)/‖mean‖, and at most 1. One pair of halves is a rough estimate
    where the noise is not spread over many parameters.

    Args:
        model: runs as it is, without compression; its parameters, buffers and random state stay as they are.
        first, second: call what they are given, the model, on half a batch each, and return a scalar loss that is a
            mean over samples.
        share: how much variance is acceptable.

    Raises:
        FxcompressError: the gradient is zero or not finite.
    """
    halves = [gradients_quietly(model, run) for run in (first, second)]
    pairs = [(a, b) for a, b in zip(*halves, strict=True) if a is not None and b is not None]
    variance = sum(float((a - b).double().square().sum()) for a, b in pairs) / 4
    norm = math.sqrt(sum(float((a.double() + b.double()).square().sum()) for a, b in pairs)) / 2
    if not norm or not math.isfinite(variance + norm):
        raise FxcompressError(f"the gradient has the norm {norm:g} and the variance {variance:g}: no limit follows")
    return min(math.sqrt(share * variance) / norm, 1.0)
