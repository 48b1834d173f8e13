"""Where a step runs, as far as planning depends on it.

`is_on_cpu(val)` is asked by everything that follows another rule on a CPU: the memory model, chunks, what is replayed.
One question in one place, so that graphs traced on a CPU can be planned as for a GPU by whoever answers it otherwise.
"""

import torch


def is_on_cpu(val: object) -> bool:
    """Whether `val` is a tensor on a CPU."""
    return isinstance(val, torch.Tensor) and val.device.type == "cpu"
