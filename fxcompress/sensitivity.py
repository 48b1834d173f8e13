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
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxcompress import codecs, compat, ledger, plan_io
from fxcompress.codecs.base import Codec, payload_nbytes
from fxcompress.codecs.order import from_rows, memory_order, to_rows
from fxcompress.errors import OptionError, UnsupportedGraphError
from fxcompress.options import Options
from fxcompress.partition import ActcompPartitioner
from fxcompress.passes.find_saved import placeholders
from fxcompress.plan import Decision, GraphPlan, Plan
from fxcompress.trace import planning_backend

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
    options: Options | None = None,
    draws: int = 2,
) -> Calibration:
    """Measure sensitivities in one step of `model`, choose widths, and write the plan.

    Args:
        model: the module that will be compiled.
        run: calls what it is given, the compiled model, and returns a scalar loss.
        path: the plan file.
        average_bits: over the elements of all tensors that affine codes store.
        options: of the plan to start from; its `inner` must be that of the later training. GACT's if None.
        draws: of the rounding noise per tensor.

    Raises:
        OptionError: the average cannot be reached.
        UnsupportedGraphError: a tensor has symbolic sizes.
    """
    options = options or Options(**GACT)  # type: ignore[arg-type]
    plans: list[GraphPlan] = []
    _step(model, run, planning_backend(options, plans))
    found: dict[int, list[tuple[Decision, float]]] = {}
    norms: list[float] = []

    def measure(graph: int, bw: fx.GraphModule, values: Sequence[Any]) -> None:
        with torch.no_grad():
            coefficients, squared = _coefficients(bw, plans[graph].decisions, values, draws)
        found[graph] = coefficients
        norms.append(squared)

    _step(model, run, _probing_backend(options, measure))
    tensors = [(graph, decision, coefficient) for graph in sorted(found) for decision, coefficient in found[graph]]
    widths = [_widths(decision) for _, decision, _ in tensors]
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
    return Calibration(tuple(shown), math.sqrt(sum(norms)), draws * len(tensors) + len(norms))


def _step(model: nn.Module, run: Run, backend: Callable[..., Any]) -> None:
    """One forward and backward whose gradients, buffers and random state are left as they were."""
    torch._dynamo.reset()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    try:
        with torch.random.fork_rng():
            torch.autograd.grad(run(torch.compile(model, backend=backend)), parameters, allow_unused=True)
    finally:
        torch._dynamo.reset()
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])


class _Prober(compat.partitioner_base()):  # type: ignore[misc]
    """Our partitioner without encodings, whose backward graphs show their inputs to `measure` first."""

    def __init__(self, options: Options, measure: Callable[[int, fx.GraphModule, Sequence[Any]], None]) -> None:
        prepared = replace(options, limit=0, save_plan=None)
        self._cut = ActcompPartitioner(prepared, decompose=options.inner == "inductor")
        self._measure = measure
        self._graphs = 0

    def uuid(self) -> str:
        """A new name for each: what is measured must not come from a cache."""
        return f"prober {id(self)}"

    def __call__(self, gm: fx.GraphModule, joint_inputs: Sequence[object], **kwargs: Any) -> compat.Partition:
        fw, bw = self._cut(gm, joint_inputs, **kwargs)
        inputs = placeholders(bw)
        copy, graph, measure = fx.Graph(), self._graphs, self._measure
        copy.output(copy.graph_copy(bw.graph, {}))
        plain = fx.GraphModule(bw, copy)

        def show(*values: Any) -> Any:
            measure(graph, plain, values)
            return values[-1]

        self._graphs += 1
        with bw.graph.inserting_after(inputs[-1]):
            shown = bw.graph.call_function(show, tuple(inputs))
        shown.meta = dict(inputs[-1].meta)
        inputs[-1].replace_all_uses_with(shown, delete_user_cb=lambda user: user is not shown)
        bw.recompile()
        return fw, bw


def _probing_backend(options: Options, measure: Callable[..., None]) -> Callable[..., Any]:
    partitioner = _Prober(options, measure)
    compiler = compat.compile_with_aot_eager if options.inner == "aot_eager" else compat.partition_with_inductor

    def backend(gm: fx.GraphModule, inputs: Sequence[Any], **kwargs: Any) -> Callable[..., Any]:
        return compiler(gm, inputs, partitioner)

    return backend


def _coefficients(
    bw: fx.GraphModule, decisions: Sequence[Decision], values: Sequence[Any], draws: int
) -> tuple[list[tuple[Decision, float]], float]:
    """C of every affine tensor of one graph, and the squared norm of its gradients."""
    names = [node.name for node in placeholders(bw)]
    exact = _gradients(bw, values)
    found = []
    for decision in decisions:
        if decision.codec != "affine":
            continue
        shared = {d.tensor.name for d in decisions if d.tensor.storage == decision.tensor.storage}
        codec = codecs.make("affine", **dict(decision.params))
        total = 0.0
        for salt in range(draws):
            stored = _stored(values[names.index(decision.tensor.name)], codec, salt)
            changed = [_like(v, stored) if n in shared else v for n, v in zip(names, values, strict=True)]
            total += _squared(a - b for a, b in zip(_gradients(bw, changed), exact, strict=True))
        found.append((decision, total / draws * (2**codec.bits - 1) ** 2))
    return found, _squared(exact)


def _gradients(bw: fx.GraphModule, values: Sequence[Any]) -> list[Tensor]:
    results = fx.Interpreter(bw).run(*values)
    return [result for result in results if isinstance(result, Tensor) and result.is_floating_point()]


def _squared(tensors: Any) -> float:
    return sum(float(tensor.double().square().sum()) for tensor in tensors)


def _stored(value: Tensor, codec: Codec, salt: int) -> Tensor:
    """What the backward would read instead of `value`, in the same memory layout."""
    order = memory_order(value)
    if order is None:
        raise UnsupportedGraphError(f"a saved tensor of sizes {tuple(value.shape)} is not dense in memory")
    parts = codec.encode(to_rows(value, order), salt)
    return from_rows(codec.decode(parts, order.cols, value.dtype), order)


def _like(value: Tensor, stored: Tensor) -> Tensor:
    """`value`, a view of the storage of which `stored` is the new content."""
    return stored.as_strided(value.shape, value.stride(), value.storage_offset() % max(stored.numel(), 1))


def _widths(decision: Decision) -> tuple[int, ...]:
    match decision.tensor.need:
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
    cols, dtype = _elements(decision), getattr(torch, decision.tensor.dtype)
    if payload_nbytes(codecs.make("affine", **params), 1, cols, dtype) != decision.nbytes:
        raise UnsupportedGraphError(f"{decision.tensor.name}: sizes are symbolic; widths are chosen for static ones")
    codec = codecs.make("affine", **{**params, "bits": bits})
    pairs: Any = tuple(sorted(codecs.params(codec).items()))
    nbytes = payload_nbytes(codec, 1, cols, dtype)
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
    _step(model, run, planning_backend(Options(inner=options.inner, plan=os.fspath(path)), final))
    plan_io.save(path, ledger.make_plan(final, options))
