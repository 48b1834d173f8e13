"""One model under one variant: compile it, run one seeded step, and measure. Shared by all benchmarks."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from bench import measure
from bench.models.gpt import GPT, GPTConfig
from bench.variants import REFERENCE, Variant


@dataclass(frozen=True, slots=True)
class Job:
    """A module with its batch. `bf16` runs the forward under autocast."""

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    bf16: bool = False

    def to(self, device: torch.device) -> "Job":
        """The same with module and batch on `device`."""

        def moved(value: Any) -> Any:
            return value.to(device) if isinstance(value, Tensor) else value

        batch = {name: moved(value) for name, value in self.kwargs.items()}
        return replace(self, module=self.module.to(device), args=tuple(map(moved, self.args)), kwargs=batch)

    def step(self, compiled: Callable[..., Tensor]) -> Tensor:
        """Seeded forward: equal dropout for all variants. The module's own gradients are untouched."""
        torch.manual_seed(0)
        parameter = next(self.module.parameters())
        with torch.autocast(parameter.device.type, torch.bfloat16) if self.bf16 else contextlib.nullcontext():
            return compiled(*self.args, **self.kwargs)

    def train_step(self, compiled: Callable[..., Tensor]) -> Callable[[], None]:
        """Forward and backward as a closure, gradients made anew."""

        def run() -> None:
            self.module.zero_grad(set_to_none=True)
            self.step(compiled).backward()  # type: ignore[no-untyped-call]

        return run

    def gradient_step(self, compiled: Callable[..., Tensor]) -> Callable[[], Sequence[Tensor]]:
        """Forward and backward as a closure that returns the gradients and leaves `.grad` alone."""
        parameters = [parameter for parameter in self.module.parameters() if parameter.requires_grad]

        def run() -> Sequence[Tensor]:
            gradients = torch.autograd.grad(self.step(compiled), parameters, allow_unused=True)
            return [gradient for gradient in gradients if gradient is not None]

        return run

    def held(self) -> list[Tensor]:
        """What the caller holds anyway: parameters, buffers and the batch."""
        batch = [value for value in (*self.args, *self.kwargs.values()) if isinstance(value, Tensor)]
        return [*self.module.parameters(), *self.module.buffers(), *batch]


@dataclass(frozen=True, slots=True)
class Trial:
    """What one variant did on one job."""

    compiled: Callable[..., Tensor]
    loss: float
    gradients: Mapping[str, Tensor]
    saved_bytes: int
    memory: measure.Memory
    first_step_s: float
    """First forward and backward, compilation included."""
    predicted_peak_bytes: int | None
    """From fxcompress's own plans; None where they do not exist."""


def run_trial(variant: Variant, job: Job, *, fresh: bool = True) -> Trial:
    """Compile `job` under `variant`, then measure one step each for bytes, gradients and memory.

    With `fresh`, compile caches start empty.
    """
    compiled = variant.compile(job.module)
    plans_before = _plan_peaks(variant)
    with variant.compiling(fresh=fresh):
        first_step_s = measure.timed(job.train_step(compiled))
    predicted = _plan_peaks(variant)[len(plans_before) :]
    job.module.zero_grad(set_to_none=True)
    loss = job.step(compiled)
    value, device = float(loss.detach()), loss.device
    saved = measure.saved_bytes(loss, job.held())
    loss.backward()  # type: ignore[no-untyped-call]
    # Copies: under CUDA graphs the next step takes back the memory of this one's results.
    gradients = {name: p.grad.clone() for name, p in job.module.named_parameters() if p.grad is not None}
    job.module.zero_grad(set_to_none=True)
    del loss
    memory = measure.peak_bytes(job.gradient_step(compiled), device)
    # With several graphs (graph breaks) their peaks do not add up to the step's, so nothing is predicted.
    peak = predicted[0] if len(predicted) == 1 else None
    return Trial(compiled, value, gradients, saved, memory, first_step_s, peak)


def warm_up(inner: str) -> None:
    """Pay once per process and machine what no variant should be charged for: imports and precompiled headers.

    Compiles a one-layer GPT for real: with filled caches nothing would be loaded, and the first variant would pay.
    """
    model = GPT(GPTConfig(layers=1, context=16, width=32))
    tokens = torch.zeros(2, 16, dtype=torch.int64)
    reference = Variant(REFERENCE, inner)
    with reference.compiling():
        reference.compile(model)(tokens, tokens).backward()  # type: ignore[no-untyped-call]
    # Dynamo remembers the shapes that a forward has seen, and would compile the next ones as symbolic.
    torch.compiler.reset()


def _plan_peaks(variant: Variant) -> list[int]:
    if variant.backend != "actcomp":
        return []
    import fxcompress

    return [plan.peak_after.peak_bytes for plan in fxcompress.reports()]
