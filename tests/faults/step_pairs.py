"""One training step with and without compression, through the same inner compiler, compared bit by bit.

A case is a function that returns `(fn, args)`; it is called once per step, under a fixed seed. The loss weights every
output by fixed numbers, so that no part of the gradient hides behind symmetry.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from fxcompress import ledger
from fxcompress.plan import KEEP, Decision, GraphPlan

Case = Callable[[], tuple[Callable[..., Any], tuple[Any, ...]]]
EXACT = {"inner": "aot_eager", "min_bytes": 64, "lossy": False}
LOSSY = {"inner": "aot_eager", "min_bytes": 64, "bits": 8}


@dataclass(frozen=True)
class Step:
    """Everything that one step produced."""

    outputs: list[torch.Tensor]
    gradients: dict[str, torch.Tensor | None]
    buffers: dict[str, torch.Tensor]
    random_state: torch.Tensor
    graphs: list[GraphPlan]
    unchanged: list[str]
    warned: list[str]

    @property
    def encoded(self) -> list[Decision]:
        return [d for graph in self.graphs for d in graph.decisions if d.codec not in (KEEP, "shared")]


def weighted(outputs: list[torch.Tensor]) -> torch.Tensor:
    """A scalar that depends on every element of the differentiable outputs, each in its own way."""
    terms = []
    for output in outputs:
        if output.requires_grad:
            flat = torch.view_as_real(output) if output.is_complex() else output
            flat = flat.values() if flat.is_nested else flat
            weight = torch.cos(torch.arange(flat.numel(), dtype=torch.float64)).reshape(flat.shape)
            terms.append((flat.double() * weight).sum())
    return torch.stack(terms).sum()


def tensors_of(value: object) -> list[torch.Tensor]:
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor)]


def train(case: Case, backend: str, options: dict[str, object] | None = None, **compile_args: Any) -> Step:
    """Run one step of `case` compiled by `backend`."""
    torch._dynamo.reset()
    ledger.clear()
    torch.manual_seed(0)
    fn, args = case()
    torch.manual_seed(1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        compiled = torch.compile(fn, backend=backend, options=options, **compile_args)
        outputs = tensors_of(compiled(*args))
        weighted(outputs).backward()
    module = fn if isinstance(fn, nn.Module) else nn.Module()
    leaves = {f"input{i}": x for i, x in enumerate(tensors_of(args)) if x.is_leaf and x.requires_grad}
    named = {**dict(module.named_parameters()), **leaves}
    return Step(
        outputs=[output.detach() for output in outputs],
        gradients={name: tensor.grad for name, tensor in named.items()},
        buffers=dict(module.named_buffers()),
        random_state=torch.get_rng_state(),
        graphs=ledger.reports(),
        unchanged=ledger.unchanged(),
        warned=[str(w.message) for w in caught if "actcomp" in str(w.message)],
    )


def same(a: torch.Tensor | None, b: torch.Tensor | None) -> bool:
    """Bit-equal, NaN equal to NaN, strides and dtype included."""
    if a is None or b is None:
        return a is b
    if a.is_sparse:
        return b.is_sparse and same(a.to_dense(), b.to_dense())
    if a.is_nested:
        return b.is_nested and same(a.values(), b.values())
    equal = a.shape == b.shape and a.dtype == b.dtype and a.stride() == b.stride()
    return equal and torch.equal(torch.nan_to_num(a), torch.nan_to_num(b)) and torch.equal(a.isnan(), b.isnan())


def relative_error(plain: Step, ours: Step) -> float:
    """Of the whole gradient, as one vector."""
    pairs = [(g.double(), ours.gradients[name]) for name, g in plain.gradients.items() if g is not None]
    distance = sum(float((g - other.double()).square().sum()) for g, other in pairs if other is not None)
    norm = sum(float(g.square().sum()) for g, _ in pairs)
    return (distance / norm) ** 0.5 if norm else distance


def compare(
    case: Case,
    options: dict[str, object] | None = None,
    *,
    within: float = 0.0,
    encodes: bool | None = None,
    **more: Any,
) -> Step:
    """Train with and without us; everything must be bit-equal but gradients, which may differ by `within`.

    Args:
        case: what to train.
        options: for the backend; exact codecs only if None.
        within: admitted relative error of the whole gradient.
        encodes: whether something must be stored encoded (None: whatever).
        **more: for `torch.compile`, on both sides.
    """
    plain = train(case, "aot_eager", None, **more)
    ours = train(case, "actcomp", options or EXACT, **more)
    assert len(plain.outputs) == len(ours.outputs)
    for i, (a, b) in enumerate(zip(plain.outputs, ours.outputs, strict=True)):
        assert same(a, b), f"output {i} changed"
    for name, buffer in plain.buffers.items():
        assert same(buffer, ours.buffers[name]), f"buffer {name} changed"
    assert torch.equal(plain.random_state, ours.random_state), "the random stream moved"
    for name, gradient in plain.gradients.items():
        other = ours.gradients[name]
        assert (gradient is None) == (other is None), name
        assert within or same(gradient, other), f"gradient of {name} changed"
    assert relative_error(plain, ours) <= within if within else True
    reasons = [(d.tensor.name, d.reason) for graph in ours.graphs for d in graph.decisions]
    assert encodes is None or bool(ours.encoded) == encodes, reasons
    return ours


def compare_both(case: Case, *, within: float = 0.05, encodes: bool | None = True, **more: Any) -> Step:
    """`compare` with exact codecs, then with 8-bit ones; returns the latter."""
    compare(case, EXACT, **more)
    return compare(case, LOSSY, within=within, encodes=encodes, **more)


def mlp(width: int = 32, *middle: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(width, width), *(middle or (nn.ReLU(),)), nn.Linear(width, width))
