"""Check a plan by training with it: one step with and one without compression, compared tensor by tensor.

Both steps start from the same seed with the same parameters, inputs and random stream, through the same inner compiler.
The loss is the model's own scalar (an output named `loss`, or a single scalar); else every output is weighted by fixed
random numbers, so that no part of the gradient is hidden by symmetry.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch.utils import _pytree as pytree

from fxcompress.errors import OptionError
from fxcompress.inputs import InputSpec
from fxcompress.ledger import reports
from fxcompress.options import Options
from fxcompress.passes.choose import SHARED
from fxcompress.plan import KEEP, GraphPlan
from fxcompress.trace import materialize

Tensors = Mapping[str, torch.Tensor | None]
NEGLIGIBLE = 1e-5
"""Gradients below this share of the whole gradient's norm are noise about zero: their relative error says nothing."""
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


def verify(
    model_factory: Callable[[], object],
    inputs: Sequence[InputSpec] = (),
    options: Options | None = None,
    *,
    bisect: bool = False,
    max_error: float = 0.1,
) -> Verification:
    """Compare a compressed training step with the plain one.

    Args:
        model_factory: returns a module, (module, args) or (module, args, kwargs); called once per step.
        inputs: sample inputs in place of the factory's.
        options: how to compress; `inner` is the compiler of both steps.
        bisect: if the error is too large, find the first tensor that makes it so (a few more steps).
        max_error: largest relative error of the whole gradient.
    """
    options = options or Options()
    plain = _step(model_factory, inputs, options, compress=False)
    ours = _step(model_factory, inputs, options, compress=True)
    result = _compare(plain, ours, options, max_error)
    if not bisect or result.gradient_rel_error <= max_error:
        return result

    def run(limit: int) -> _Step:
        return _step(model_factory, inputs, replace(options, limit=limit), compress=True)

    return replace(result, culprit=_bisect(run, plain, result.compressed, max_error))


def _step(
    model_factory: Callable[[], object], inputs: Sequence[InputSpec], options: Options, *, compress: bool
) -> _Step:
    with torch.random.fork_rng():
        torch.manual_seed(options.seed)
        module, args, kwargs = materialize(model_factory, inputs, None)
        torch._dynamo.reset()
        first = len(reports())
        torch.manual_seed(options.seed + 1)
        result = _compiled(module, options, compress=compress)(*args, **kwargs)
        leaves, _ = pytree.tree_flatten_with_path(result)
        outputs = {f"output{pytree.keystr(path)}": leaf for path, leaf in leaves if isinstance(leaf, torch.Tensor)}
        loss = _loss(outputs, options.seed)
        loss.backward()  # type: ignore[no-untyped-call]
        return _Step(
            loss=loss.item(),
            outputs={name: output.detach() for name, output in outputs.items()},
            buffers=dict(module.named_buffers()),
            gradients={**_gradients(module), **_input_gradients(args, kwargs)},
            graphs=tuple(reports()[first:]),
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


def _loss(outputs: dict[str, torch.Tensor], seed: int) -> torch.Tensor:
    differentiable = {name: output for name, output in outputs.items() if output.requires_grad}
    if not differentiable:
        raise OptionError("the model returned no tensor that depends on a parameter, so there is no gradient to verify")
    for name, output in differentiable.items():
        if output.numel() == 1 and (len(differentiable) == 1 or name in ("output['loss']", "output.loss")):
            return output.sum()
    generator = torch.Generator().manual_seed(seed)
    terms = []
    for output in differentiable.values():
        weight = torch.randn(output.shape, generator=generator).to(output.device, output.dtype)
        terms.append((output * weight).abs().sum() if output.is_complex() else (output * weight).sum())
    return torch.stack([term.float() for term in terms]).sum()


def _gradients(module: torch.nn.Module) -> Tensors:
    return {name: parameter.grad for name, parameter in module.named_parameters() if parameter.requires_grad}


def _input_gradients(args: object, kwargs: object) -> Tensors:
    leaves, _ = pytree.tree_flatten_with_path((args, kwargs))
    return {
        f"input{pytree.keystr(path)}": leaf.grad
        for path, leaf in leaves
        if isinstance(leaf, torch.Tensor) and leaf.is_leaf and leaf.requires_grad
    }


def _compare(plain: _Step, ours: _Step, options: Options, max_error: float) -> Verification:
    gradients = _errors(plain.gradients, ours.gradients)
    whole = _whole_error(plain.gradients, ours.gradients)
    outputs, buffers = _errors(plain.outputs, ours.outputs), _errors(plain.buffers, ours.buffers)
    failure = _forward_failure((*outputs, *buffers), {**plain.outputs, **plain.buffers}, options)
    if not failure and not whole <= max_error:
        failure = f"the whole gradient's relative error is {whole:.3g}, allowed: {max_error:g}"
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
    )


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
        if _whole_error(plain.gradients, run(middle).gradients) <= max_error:
            good = middle
        else:
            bad = middle
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
