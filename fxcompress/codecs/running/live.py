"""Running ranges by name, and the operator that reads and moves them.

    saved = {"model": model.state_dict(), "ranges": ranges.state_dict()}      # from fxcompress import ranges

A range in a graph would be part of it, and a new buffer would be a new key of the model's state. The operator
`fxcompress::running_range` therefore keeps them here; compilers see an opaque function of a tensor's own range. What it
returns is a copy: a payload made from it does not change when the next step moves the range.
"""

import threading
from collections.abc import Mapping

import torch

from fxcompress.codecs.groups import LARGEST

_lock = threading.Lock()
_ranges: dict[str, torch.Tensor] = {}


def state_dict() -> dict[str, torch.Tensor]:
    """All running ranges, for a checkpoint: name of the stored tensor → fp32 `[2, heads]`, lowest and highest."""
    with _lock:
        return {key: known.clone() for key, known in _ranges.items()}


def load_state_dict(state: Mapping[str, torch.Tensor]) -> None:
    """Replace all running ranges by those of `state_dict`.

    Raises:
        ValueError: an entry is no `[2, heads]` of floating point.
    """
    for key, known in state.items():
        if known.dim() != 2 or known.shape[0] != 2 or not known.is_floating_point():
            raise ValueError(f"the range of {key!r} is {known.dtype} {tuple(known.shape)}; it must be fp32 [2, heads]")
    with _lock:
        _ranges.clear()
        _ranges.update({key: known.detach().to(torch.float32, copy=True) for key, known in state.items()})


def clear() -> None:
    """Forget all running ranges: the next step begins with its own."""
    with _lock:
        _ranges.clear()


@torch.library.custom_op("fxcompress::running_range", mutates_args=())
def running_range(low: torch.Tensor, high: torch.Tensor, key: str, decay: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Move the ranges named `key` towards fp32 `[heads]` low … high, and return them; NaN where none is known.

    A head whose own range is not finite leaves its running range where it was.
    """
    now = torch.stack((low, high))
    with _lock:
        known = _ranges.get(key)
        if known is None or known.shape != now.shape:
            known = torch.full_like(now, torch.nan)
        known = known.to(now.device)
        moved = torch.where(known.isnan(), now, known * decay + now * (1 - decay))
        known = torch.where((now.abs() <= LARGEST).all(0), moved, known)
        _ranges[key] = known
    return known[0].clone(), known[1].clone()


@running_range.register_fake
def _(low: torch.Tensor, high: torch.Tensor, key: str, decay: float) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty_like(low), torch.empty_like(high)
