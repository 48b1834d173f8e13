"""Widths by measured sensitivity, as GACT chooses them (Liu et al., ICML 2022): one plan file, made before training.

    found = sensitivity.calibrate(model, lambda compiled: compiled(tokens, targets), "plan.json", average_bits=4)
    compiled = torch.compile(model, backend="actcomp", options={"plan": "plan.json"})

Storing tensor l at b bits changes the gradient by ‖Δ‖² = C_l/(2^b - 1)². Each C_l is measured alone, all else exact, by
repeating the backward pass with that tensor encoded and decoded; then the widths minimise Σ C_l/(2^b_l - 1)² at an
average that is stated. GACT runs three whole training steps per tensor for the same numbers.
"""

import heapq
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn

from fxcompress import analytic, codecs, ledger, plan_io
from fxcompress.codecs.base import payload_nbytes
from fxcompress.errors import OptionError, UnsupportedGraphError
from fxcompress.options import GivenOptions, Options, as_options
from fxcompress.passes.choose import strictest
from fxcompress.plan import Decision, GraphPlan, Plan
from fxcompress.probe import coefficients, probing_backend
from fxcompress.trace import planning_backend

Scorer = Literal["solo", "analytic"]
Run = Callable[[Callable[..., Any]], Tensor]
GACT = {"bits": 4, "operand_bits": 4, "group": 256, "rounding": "stochastic"}
"""Options of the plan to start from, as in the preset gact-l1."""


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """What one tensor's width does to the gradient: ‖Δ‖² = coefficient/(2^bits - 1)²."""

    name: str
    layer: str
    elements: int
    coefficient: float
    widths: tuple[int, ...]
    """Widths that its need class admits, ascending."""
    bits: int
    """The width chosen."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """What was measured and chosen. `backward_passes` is the cost, besides one step."""

    tensors: tuple[Sensitivity, ...]
    gradient_norm: float
    backward_passes: int

    @property
    def expected_error(self) -> float:
        """Norm of the gradient's error over the gradient's norm, errors of different tensors being independent."""
        total = sum(tensor.coefficient / (2**tensor.bits - 1) ** 2 for tensor in self.tensors)
        return math.sqrt(total) / self.gradient_norm if self.gradient_norm else math.inf

    def alarm(self, gradient_variance: float, share: float = 0.1) -> bool:
        """GACT's alarm: whether compression adds more than `share` of the minibatch gradient's own variance.

        Args:
            gradient_variance: E‖g - E g‖² over minibatches.
            share: how much more variance is acceptable.
        """
        return (self.expected_error * self.gradient_norm) ** 2 > share * gradient_variance


def allocate(
    coefficients: Sequence[float], elements: Sequence[int], widths: Sequence[tuple[int, ...]], average: float
) -> list[int]:
    """Widths of small Σ C/(2^b - 1)² with at most `average` bits per element, greedily as in GACT.

    All start at their largest width; the demotion that adds the least error per bit saved is made until the average
    holds. Result: the best for the average that it ends at among those where error against bits is convex.

    Raises:
        OptionError: the smallest widths exceed the average.
    """
    at = [len(options) - 1 for options in widths]
    budget = average * sum(elements)
    used = float(sum(options[-1] * count for options, count in zip(widths, elements, strict=True)))
    heap = [_demotion(index, at, coefficients, elements, widths) for index in range(len(at)) if at[index]]
    heapq.heapify(heap)
    while used > budget:
        if not heap:
            least = used / sum(elements)
            raise OptionError(f"average of {average:g} bits: the smallest that the need classes admit is {least:.3g}")
        _, index = heapq.heappop(heap)
        used -= elements[index] * (widths[index][at[index]] - widths[index][at[index] - 1])
        at[index] -= 1
        if at[index]:
            heapq.heappush(heap, _demotion(index, at, coefficients, elements, widths))
    return [options[place] for options, place in zip(widths, at, strict=True)]


def _demotion(
    index: int, at: list[int], coefficients: Sequence[float], elements: Sequence[int], widths: Sequence[tuple[int, ...]]
) -> tuple[float, int]:
    """Error that the next demotion adds per bit that it saves."""
    now, then = widths[index][at[index]], widths[index][at[index] - 1]
    added = coefficients[index] * ((2**then - 1) ** -2 - (2**now - 1) ** -2)
    return added / (elements[index] * (now - then)), index


def calibrate(
    model: nn.Module,
    run: Run,
    path: str | os.PathLike[str],
    *,
    average_bits: float = 4.0,
    options: GivenOptions = None,
    draws: int = 2,
    scorer: Scorer = "solo",
) -> Calibration:
    """Measure sensitivities in one step of `model`, choose widths, and write the plan.

    Args:
        model: the module that will be compiled.
        run: calls what it is given, the compiled model, and returns a scalar loss.
        path: the plan file.
        average_bits: over the elements of all tensors that affine codes store.
        options: of the plan to start from; its `inner` must be that of the later training. GACT's if None.
        draws: of the rounding noise per tensor.
        scorer: "solo" repeats the backward pass for every tensor; "analytic" takes operands of products from one pass,
            by ActNN's closed form, and repeats it for the others only.

    Raises:
        OptionError: the average cannot be reached.
        UnsupportedGraphError: a tensor has symbolic sizes.
    """
    options = as_options(GACT if options is None else options)
    plans: list[GraphPlan] = []
    step_quietly(model, run, planning_backend(options, plans))
    found: dict[int, list[tuple[Decision, float]]] = {}
    norms: list[float] = []
    passes: list[int] = []

    def measure(graph: int, bw: fx.GraphModule, values: Sequence[Any]) -> None:
        with torch.no_grad():
            known = analytic.coefficients(bw, plans[graph].decisions, values) if scorer == "analytic" else {}
            measured, squared = coefficients(bw, plans[graph].decisions, values, draws, known)
        found[graph] = measured
        norms.append(squared)
        passes.append(1 + bool(known) + draws * (len(measured) - len(known)))

    step_quietly(model, run, probing_backend(options, measure))
    tensors = [(graph, decision, coefficient) for graph in sorted(found) for decision, coefficient in found[graph]]
    widths = [_widths(decision, plans[graph].decisions) for graph, decision, _ in tensors]
    sizes = [_elements(decision) for _, decision, _ in tensors]
    chosen = allocate([c for _, _, c in tensors], sizes, widths, average_bits)
    changed = {
        (graph, decision.tensor.name): _resized(decision, bits)
        for (graph, decision, _), bits in zip(tensors, chosen, strict=True)
    }
    _save(model, run, path, options, plans, changed)
    shown = [
        Sensitivity(decision.tensor.name, decision.tensor.layer, size, coefficient, width, bits)
        for (_, decision, coefficient), size, width, bits in zip(tensors, sizes, widths, chosen, strict=True)
    ]
    return Calibration(tuple(shown), math.sqrt(sum(norms)), sum(passes))


def step_quietly(model: nn.Module, run: Run, backend: Callable[..., Any]) -> None:
    """One forward and backward through `backend`, of which nothing remains."""
    torch.compiler.reset()
    try:
        gradients_quietly(model, lambda plain: run(torch.compile(plain, backend=backend)))
    finally:
        torch.compiler.reset()


def gradients_quietly(model: nn.Module, run: Run) -> Sequence[Tensor | None]:
    """The gradients of one step; those of the parameters, buffers and the random state are left as they were."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    try:
        with torch.random.fork_rng():
            return torch.autograd.grad(run(model), parameters, allow_unused=True)
    finally:
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])


def _widths(decision: Decision, all_of_graph: Sequence[Decision]) -> tuple[int, ...]:
    """What the need classes of all views of its storage admit."""
    storage = decision.tensor.storage
    match strictest([other.tensor.need for other in all_of_graph if other.tensor.storage == storage]):
        case "derivative":
            return (1, 2, 4, 8)
        case "attention" | "logits":
            return (8,)
        case _:
            return (2, 4, 8)


def _elements(decision: Decision) -> int:
    dtype: torch.dtype = getattr(torch, decision.tensor.dtype)
    return decision.tensor.storage_nbytes // dtype.itemsize


def _resized(decision: Decision, bits: int) -> Decision:
    """The same decision at another width."""
    params = dict(decision.params)
    elements, dtype = _elements(decision), getattr(torch, decision.tensor.dtype)
    cols = decision.row or elements
    if payload_nbytes(codecs.make("affine", **params), elements // cols, cols, dtype) != decision.nbytes:
        raise UnsupportedGraphError(f"{decision.tensor.name}: sizes are symbolic; widths are chosen for static ones")
    codec = codecs.make("affine", **{**params, "bits": bits})
    pairs: Any = tuple(sorted(codecs.params(codec).items()))
    nbytes = payload_nbytes(codec, elements // cols, cols, dtype)
    return replace(decision, params=pairs, nbytes=nbytes, reason=f"{decision.reason}; width by measured sensitivity")


def _save(
    model: nn.Module,
    run: Run,
    path: str | os.PathLike[str],
    options: Options,
    plans: Sequence[GraphPlan],
    changed: dict[tuple[int, str], Decision],
) -> None:
    """Write the plan, replay it, and write it again with the bytes and peaks that it then has."""
    drafts = [
        replace(plan, decisions=tuple(changed.get((graph, d.tensor.name), d) for d in plan.decisions))
        for graph, plan in enumerate(plans)
    ]
    draft: Plan = ledger.make_plan(drafts, options)
    plan_io.save(path, draft)
    final: list[GraphPlan] = []
    step_quietly(model, run, planning_backend(Options(inner=options.inner, plan=os.fspath(path)), final))
    plan_io.save(path, ledger.make_plan(final, options))
