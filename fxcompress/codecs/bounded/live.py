"""Error bounds that change between steps without a compilation: a table by name, and the operator that reads it.

    set_bound("features.3/relu_1", 0.05)        # the next step stores that tensor within 0.05

A number in a graph would be part of it, and a new input is no input of the user's function. The operator
`fxcompress::error_bound` therefore looks the bound up when it runs; compilers see an opaque function of a tensor.
"""

import threading

import torch

_lock = threading.Lock()
_bounds: dict[str, float] = {}
SMALLEST, LARGEST = 2.0**-100, 2.0**100
"""Bounds beyond these are moved to them: steps and their reciprocals stay normal numbers."""
UNSET = SMALLEST
"""What a plan states for a tensor whose bound is to be set: until then, codes are as near as the rate allows."""


def set_bound(key: str, eps: float) -> None:
    """Let the tensor named `key` be stored within `eps` from its next encode on; `eps` must be positive."""
    if not eps > 0:
        raise ValueError(f"the error bound of {key!r} is {eps!r}; it must be positive")
    with _lock:
        _bounds[key] = eps


def bounds() -> dict[str, float]:
    """All bounds that were set, by key."""
    with _lock:
        return dict(_bounds)


def clear() -> None:
    """Forget all bounds: every tensor is stored within the one that its plan states."""
    with _lock:
        _bounds.clear()


@torch.library.custom_op("fxcompress::error_bound", mutates_args=())
def error_bound(like: torch.Tensor, key: str, planned: float) -> torch.Tensor:
    """fp32 scalar on the device of `like`: the bound set for `key`, or `planned`."""
    with _lock:
        eps = _bounds.get(key, planned)
    return torch.full((), min(max(eps, SMALLEST), LARGEST), dtype=torch.float32, device=like.device)


@error_bound.register_fake
def _(like: torch.Tensor, key: str, planned: float) -> torch.Tensor:
    return like.new_empty((), dtype=torch.float32)
