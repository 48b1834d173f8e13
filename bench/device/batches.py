"""The largest batch that trains in a stated amount of memory."""

import functools
from collections.abc import Callable

import torch

from bench import measure
from bench.device.section import Cases, Measured, Scale
from bench.device.training import chosen, large_job
from bench.models.large import LARGE
from bench.trial import Job
from bench.variants import Variant

LIMIT_BYTES = 24 * 2**30
"""What torch's allocator may take, of whatever card."""
TOY_LIMIT_BYTES = 4 * 2**20
FIRST = {"vit_base": 64, "resnet50": 64, "gpt2_medium": 2}
"""The batch whose peak predicts the largest one."""
COMPARED = ("plain", "actcomp", "checkpoint", "budget-0.5", "actcomp-2bit-all")
_TRIES = 3


def cases(scale: Scale) -> Cases:
    """Models × ways to save memory."""
    found: dict[str, Callable[[], Measured]] = {}
    for model in list(LARGE)[: 1 if scale.toy else None]:
        for name in COMPARED[: 2 if scale.toy else None]:
            if (variant := chosen(name, scale)) is not None:
                found[f"{model} {name}"] = functools.partial(find_largest, model, variant, scale)
    return found


def find_largest(model: str, variant: Variant, scale: Scale) -> Measured:
    """Extrapolate from a batch that fits to the largest that should, try it, and correct the guess.

    Returns:
        `batch`, the largest that ran, with what it used; `failed_batch`, the smallest that did not, None if none was
        tried. The true largest one lies between them.
    """
    limit = TOY_LIMIT_BYTES if scale.toy else LIMIT_BYTES
    if scale.device == "cuda":
        torch.cuda.set_per_process_memory_fraction(limit / torch.cuda.get_device_properties(0).total_memory)
    batch, failed = 0, None
    guess = 2 if scale.toy else FIRST[model]
    used = 0
    for _ in range(_TRIES):
        needed = used_bytes(model, guess, variant, scale, limit)
        if needed is None:
            failed = guess
            guess = (batch + failed) // 2
        else:
            batch, used = guess, needed
            guess = min(largest_guess(batch, used, limit), (failed or 2**31) - 1)
        if guess <= batch:
            break
    return {"batch": batch, "failed_batch": failed, "used_bytes": used, "limit_bytes": limit}


def largest_guess(batch: int, used: int, limit: int) -> int:
    """The batch at which memory, taken as proportional to it, reaches the limit."""
    return batch * limit // used


def used_bytes(model: str, batch: int, variant: Variant, scale: Scale, limit: int) -> int | None:
    """Bytes at the peak of a step, with parameters and gradients; None if they exceed the limit."""
    torch.compiler.reset()
    try:
        job = large_job(model, batch, scale)
        used = _step_bytes(job, variant)
    except torch.OutOfMemoryError:
        return None
    return used if used <= limit else None


def _step_bytes(job: Job, variant: Variant) -> int:
    compiled = variant.compile(job.module)
    with variant.compiling(fresh=False):
        job.train_step(compiled)()
    job.module.zero_grad(set_to_none=True)
    held = sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in job.held()}.values())
    return held + measure.peak_bytes(job.gradient_step(compiled), next(job.module.parameters()).device).total_peak_bytes
