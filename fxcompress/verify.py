"""Check a plan by training with it: one step with and one without compression, compared tensor by tensor.

Both steps start from the same seed with the same parameters, inputs and random stream, through the same inner compiler.
The loss is the model's own scalar (an output named `loss`, or a single scalar); else every output is weighted by fixed
random numbers, so that no part of the gradient is hidden by symmetry.
"""

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from fxcompress import compat
from fxcompress.inputs import InputSpec
from fxcompress.ledger import reports, unchanged
from fxcompress.options import GivenOptions, Options, as_options
from fxcompress.passes.choose import SHARED
from fxcompress.plan import KEEP, GraphPlan
from fxcompress.seeded_step import loss_of, outputs_of, seeded
from fxcompress.stored_errors import StoredError, calibrated_step, stored_errors

Tensors = Mapping[str, torch.Tensor | None]
NEGLIGIBLE = 1e-5
"""Gradients below this share of the whole gradient's norm are noise about zero: their relative error says nothing."""
TOLERANCE = 1.1
"""How far the measured error may be above what `options.max_error` lets a plan be predicted to have."""
ROUNDING_STEPS = 16
"""Forward differences that Inductor's own choice of fusions may cause, in units of the dtype's epsilon."""


@dataclass(frozen=True, slots=True)
class TensorError:
    """How far one tensor is from the uncompressed step's. `rel_error` is of Euclidean norms, inf if not comparable."""

    name: str
    rel_error: float
    max_abs_error: float
    norm: float
    negligible: bool = False
    """The gradient is zero but for rounding; only `max_abs_error` means something."""


@dataclass(frozen=True, slots=True)
class Verification:
    """What `verify` found. `failure` is empty if the check passed."""

    failure: str
    inner: str
    loss_plain: float
    loss: float
    gradient_rel_error: float
    """Of the whole gradient, all parameters as one vector."""
    max_error: float
    outputs: tuple[TensorError, ...]
    buffers: tuple[TensorError, ...]
    gradients: tuple[TensorError, ...]
    compressed: int
    """Tensors that were encoded, all graphs together."""
    saved_bytes_before: int
    saved_bytes_after: int
    predicted_error: float | None = None
    """Of the whole gradient, as the plan states it; None if no plan does."""
    stored: tuple[StoredError, ...] = ()
    """If asked for: every tensor in lossy codes, the largest errors first."""
    culprit: str = ""
    """With bisection: the first tensor whose compression pushes the error above the limit."""

    @property
    def ok(self) -> bool:
        """Whether the check passed."""
        return not self.failure


@dataclass(frozen=True, slots=True)
class _Step:
    """Everything one training step produced, by name."""

    loss: float
    outputs: Tensors
    buffers: Tensors
    gradients: Tensors
    graphs: tuple[GraphPlan, ...]
    unchanged: tuple[str, ...]


def verify(
    model_factory: Callable[[], object],
    inputs: Sequence[InputSpec] = (),
    options: GivenOptions = None,
    *,
    bisect: bool = False,
    max_error: float | None = None,
    per_tensor: bool = False,
) -> Verification:
    """Compare a compressed training step with the plain one.

    Args:
        model_factory: returns a module, (module, args) or (module, args, kwargs); called once per step.
        inputs: sample inputs in place of the factory's.
        options: how to compress; `inner` is the compiler of both steps.
        bisect: if the error is too large, find the first tensor that makes it so (a few more steps).
        max_error: largest relative error of the whole gradient; None: what `options.max_error` says and a tenth of it,
            or 0.1.
        per_tensor: measure every tensor alone, too: a backward pass each.
    """
    options = as_options(options)
    if max_error is None:
        max_error = 0.1 if options.max_error is None else TOLERANCE * options.max_error
    with tempfile.TemporaryDirectory() as folder:
        if options.max_error is not None and options.calibration is None and options.plan is None:
            path = Path(folder) / "errors.json"
            calibrated_step(model_factory, inputs, options, path)
            options = replace(options, calibration=str(path))
        result, plans = _verified(model_factory, inputs, options, bisect=bisect, max_error=max_error)
        if per_tensor and any(graph.accuracies for graph in plans):
            result = replace(result, stored=stored_errors(model_factory, inputs, options, plans, Path(folder)))
    return result


def _verified(
    model_factory: Callable[[], object],
    inputs: Sequence[InputSpec],
    options: Options,
    *,
    bisect: bool,
    max_error: float,
) -> tuple[Verification, tuple[GraphPlan, ...]]:
    plain = _step(model_factory, inputs, options, compress=False)
    ours = _step(model_factory, inputs, options, compress=True)
    result = _compare(plain, ours, options, max_error)
    if not bisect or result.gradient_rel_error <= max_error:
        return result, ours.graphs

    def run(limit: int) -> _Step:
        return _step(model_factory, inputs, replace(options, limit=limit), compress=True)

    return replace(result, culprit=_bisect(run, plain, result.compressed, max_error)), ours.graphs


def _step(
    model_factory: Callable[[], object], inputs: Sequence[InputSpec], options: Options, *, compress: bool
) -> _Step:
    with seeded(model_factory, inputs, options) as (module, args, kwargs):
        first, as_they_are = len(reports()), len(unchanged())
        outputs = outputs_of(_compiled(module, options, compress=compress)(*args, **kwargs))
        loss = loss_of(outputs, options.seed)
        loss.backward()  # type: ignore[no-untyped-call]
        return _Step(
            loss=loss.item(),
            outputs={name: output.detach() for name, output in outputs.items()},
            buffers=dict(module.named_buffers()),
            gradients={**_gradients(module), **_input_gradients(args, kwargs)},
            graphs=tuple(reports()[first:]),
            unchanged=tuple(unchanged()[as_they_are:]),
        )


def _compiled(module: torch.nn.Module, options: Options, *, compress: bool) -> Callable[..., object]:
    settings: dict[str, object] = {}
    if compress:
        settings = {"backend": "actcomp", "options": options.to_dict()}
    elif options.inner == "inductor" and options.mode is not None:
        settings = {"backend": "inductor", "mode": options.mode}
    else:
        settings = {"backend": options.inner, "options": options.inductor_patches() or None}
    compiled: Callable[..., object] = torch.compile(module, **settings)  # type: ignore[call-overload]
    return compiled


def _gradients(module: torch.nn.Module) -> Tensors:
    return {name: parameter.grad for name, parameter in module.named_parameters() if parameter.requires_grad}


def _input_gradients(args: object, kwargs: object) -> Tensors:
    given = compat.tensors_by_path((args, kwargs))
    return {f"input{path}": leaf.grad for path, leaf in given.items() if leaf.is_leaf and leaf.requires_grad}


def _compare(plain: _Step, ours: _Step, options: Options, max_error: float) -> Verification:
    gradients = _errors(plain.gradients, ours.gradients)
    whole = _whole_error(plain.gradients, ours.gradients)
    outputs, buffers = _errors(plain.outputs, ours.outputs), _errors(plain.buffers, ours.buffers)
    failure = _forward_failure((*outputs, *buffers), {**plain.outputs, **plain.buffers}, options)
    if not failure and not whole <= max_error:
        failure = f"the whole gradient's relative error is {whole:.3g}, allowed: {max_error:g}"
    if not failure and not ours.graphs:
        why = "; ".join(ours.unchanged) or "Dynamo compiled no graph that saves anything for backward"
        failure = f"nothing was checked, for actcomp planned no graph: {why}"
    return Verification(
        failure=failure,
        inner=options.inner,
        loss_plain=plain.loss,
        loss=ours.loss,
        gradient_rel_error=whole,
        max_error=max_error,
        outputs=outputs,
        buffers=buffers,
        gradients=gradients,
        compressed=len(_encoded(ours)),
        saved_bytes_before=sum(graph.saved_bytes_before for graph in ours.graphs),
        saved_bytes_after=sum(graph.saved_bytes_after for graph in ours.graphs),
        predicted_error=_predicted(ours.graphs),
    )


def _predicted(graphs: Sequence[GraphPlan]) -> float | None:
    """The error of all graphs' gradients together, each being independent of the others."""
    known = [accuracy for graph in graphs for accuracy in graph.accuracies]
    norm = math.hypot(*(accuracy.gradient_norm for accuracy in known))
    return math.hypot(*(a.predicted * a.gradient_norm for a in known)) / norm if norm else None


def _errors(plain: Tensors, ours: Tensors) -> tuple[TensorError, ...]:
    floor = NEGLIGIBLE * math.sqrt(sum(_norm(tensor) ** 2 for tensor in plain.values()))
    return tuple(_tensor_error(name, tensor, ours.get(name), floor) for name, tensor in plain.items())


def _tensor_error(name: str, plain: torch.Tensor | None, ours: torch.Tensor | None, floor: float) -> TensorError:
    if plain is None or ours is None or plain.shape != ours.shape:
        error = 0.0 if plain is ours else math.inf
        return TensorError(name, error, error, _norm(plain))
    difference = _difference(plain, ours)
    norm, distance = _norm(plain), _norm(difference)
    relative = distance / norm if norm and math.isfinite(norm) else math.inf
    return TensorError(
        name=name,
        rel_error=0.0 if distance == 0 else relative,
        max_abs_error=difference.abs().max().item() if difference.numel() else 0.0,
        norm=norm,
        negligible=norm <= floor,
    )


def _difference(plain: torch.Tensor, ours: torch.Tensor) -> torch.Tensor:
    """Return the difference in double precision, zero where both have the same NaN or infinity."""
    left, right = _double(plain), _double(ours)
    same = (left == right) | (left.isnan() & right.isnan())
    return torch.where(same, torch.zeros_like(left), left - right)


def _whole_error(plain: Tensors, ours: Tensors) -> float:
    distance = 0.0
    for name, tensor in plain.items():
        other = ours.get(name)
        if tensor is not None and other is not None:
            distance = math.hypot(distance, _norm(_difference(tensor, other)))
        elif tensor is not other:
            return math.inf
    norm = math.hypot(*(_norm(tensor) for tensor in plain.values()))
    if distance == 0:
        return 0.0
    return distance / norm if norm and math.isfinite(norm) else math.inf


def _forward_failure(errors: Sequence[TensorError], plain: Tensors, options: Options) -> str:
    """Name the first output or buffer that compression changed, which none may."""
    for error in errors:
        tensor = plain[error.name]
        fused = options.inner == "inductor" and tensor is not None and tensor.is_floating_point()
        tolerance = ROUNDING_STEPS * torch.finfo(tensor.dtype).eps if fused and tensor is not None else 0.0
        if not error.rel_error <= tolerance:
            return f"{error.name} must not change, its relative error is {error.rel_error:.3g}"
    return ""


def _bisect(run: Callable[[int], _Step], plain: _Step, total: int, max_error: float) -> str:
    """Find the smallest n for which compressing the first n tensors is too much, and name what the last of them is."""
    good, bad = 0, total
    while bad - good > 1:
        middle = (good + bad) // 2
        fits = _whole_error(plain.gradients, run(middle).gradients) <= max_error
        good, bad = (middle, bad) if fits else (good, middle)
    before = _encoded(run(good))
    new = [text for text in _encoded(run(bad)) if text not in before]
    return "; ".join(new) or f"limit={bad}"


def _encoded(step: _Step) -> list[str]:
    return [
        f"{decision.tensor.name} ({decision.codec}), layer {decision.tensor.layer or '(top)'}, {decision.tensor.source}"
        for graph in step.graphs
        for decision in graph.decisions
        if decision.codec not in (KEEP, SHARED)
    ]


def _double(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to(torch.complex128 if tensor.is_complex() else torch.float64)


def _norm(tensor: torch.Tensor | None) -> float:
    return 0.0 if tensor is None else float(torch.linalg.vector_norm(_double(tensor)))
