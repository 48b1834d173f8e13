"""How the gradient's error depends on the error of every saved tensor: all tensors in one pass through the backward.

A gradient G is a function of the saved tensors x_l. Independent errors of mean zero and variances v put on their
elements change it, to first order, by

    E‖ΔG‖² = Σ_l Σ_i v_li ‖∂G/∂x_li‖²,     ‖∂G/∂x_li‖² = E[((∂G/∂x_l)ᵀ z)_i²],     z = ±1 at random

so that one derivative of <G, z> with respect to the saved tensors (a backward of the backward) yields every tensor's
share for every width at once (the estimator is Hutchinson's, 1990, on the diagonal of JᵀJ). For the operand of a matrix
product it is the closed form of `analytic`, but for the draw of z.
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from fxcompress import compat
from fxcompress.attention_math import differentiable
from fxcompress.codecs.affine import Affine
from fxcompress.passes.ops import op_name
from fxcompress.rounding_error import expected_square


@dataclass(frozen=True, slots=True)
class Stored:
    """A saved tensor in a backward graph: the node that decodes it, from how many bits, and codecs to judge.

    A tensor that is saved as it is has 0 bits and one node per view, whose errors are taken as independent. `row` is as
    in `Decision`.
    """

    nodes: tuple[fx.Node, ...]
    bits: int
    codecs: tuple[Affine, ...]
    row: int = 0


Report = Callable[[Tensor, Tensor], None]
Squares = dict[str, list[float]]


def squared_errors(
    bw: fx.GraphModule, stored: Mapping[str, Stored], values: Sequence[Any], *, draws: int
) -> tuple[Squares, float, frozenset[str]]:
    """E‖ΔG‖² of each tensor under each of its codecs, all others as they are.

    On a GPU, what the derivative needs is held in the host's memory, so that the device holds no more than an
    interpreted backward does.

    Args:
        bw: backward graph; it reads the tensors that `stored` names behind their nodes.
        stored: by the tensor's name.
        values: the inputs of `bw`.
        draws: of z. The spread of an estimate falls as 1/√draws, and is small for tensors of many elements.

    Returns:
        The squares by tensor; ‖G‖²; and the tensors of which nothing is known, because their errors pass through an
        operator that has neither a derivative nor a decomposition.
    """
    found: Squares = {name: [0.0] * len(entry.codecs) for name, entry in stored.items()}
    anchor = torch.zeros((), requires_grad=True)
    with torch.enable_grad(), _held(values):
        runner = _Differentiable(bw, anchor, _reports(stored, found))
        results = [r for r in runner.run(*values) if isinstance(r, Tensor) and r.is_floating_point()]
        squared = float(sum(result.detach().double().square().sum() for result in results))
        mixed = [result for result in results if result.requires_grad]
        for draw in range(draws if mixed else 0):
            signs = [random_signs(result, draw * len(mixed) + i) for i, result in enumerate(mixed)]
            torch.autograd.grad(mixed, anchor, signs, retain_graph=draw + 1 < draws, allow_unused=True)
    hidden = frozenset(name for name, entry in stored.items() if _reach(entry.nodes, runner.opaque))
    known = {name: [total / draws for total in totals] for name, totals in found.items() if name not in hidden}
    return known, squared, hidden


def random_signs(like: Tensor, seed: int) -> Tensor:
    """±1 in the sizes and dtype of `like`, the same for the same seed."""
    generator = torch.Generator(like.device).manual_seed(seed)
    return torch.randint(0, 2, like.shape, generator=generator, device=like.device).to(like.dtype).mul_(2).sub_(1)


def _reach(nodes: Sequence[fx.Node], opaque: set[fx.Node]) -> bool:
    """Whether a value of `nodes` enters an opaque operator, directly or not."""
    stack, seen = list(nodes), set[fx.Node]()
    while opaque and stack:
        node = stack.pop()
        if node in opaque:
            return True
        new = [user for user in node.users if user not in seen]
        seen.update(new)
        stack.extend(new)
    return False


def _reports(stored: Mapping[str, Stored], found: Squares) -> dict[fx.Node, Report]:
    def reporting(name: str, entry: Stored) -> Report:
        def report(value: Tensor, slope: Tensor) -> None:
            squared = slope.detach().float().square()
            for i, codec in enumerate(entry.codecs):
                variance = expected_square(value, codec, coded_bits=entry.bits, row=entry.row)
                found[name][i] += float((variance * squared).double().sum())

        return report

    return {node: reporting(name, entry) for name, entry in stored.items() for node in entry.nodes}


def _held(values: Sequence[Any]) -> contextlib.AbstractContextManager[Any]:
    on_gpu = any(isinstance(value, Tensor) and value.is_cuda for value in values)
    return torch.autograd.graph.save_on_cpu() if on_gpu else contextlib.nullcontext()


class _Watched(torch.autograd.Function):
    """The identity, whose derivative is shown to `report` and goes no further."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, value: Tensor, report: Report) -> Tensor:
        ctx.report = report
        ctx.save_for_backward(value)
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[None, None, None]:
        with torch.no_grad():
            ctx.report(*ctx.saved_tensors, slope)
        return None, None, None


class _Differentiable(fx.Interpreter):
    """Runs a backward graph so that autograd can differentiate it with respect to the watched nodes."""

    def __init__(self, bw: fx.GraphModule, anchor: Tensor, watched: Mapping[fx.Node, Report]) -> None:
        super().__init__(bw)
        self._anchor, self._watched = anchor, watched
        self.opaque: set[fx.Node] = set()

    def run_node(self, n: fx.Node) -> Any:
        result = self._computed(n)
        if n in self._watched:
            return _Watched.apply(self._anchor, result.detach(), self._watched[n])  # type: ignore[no-untyped-call]
        return result

    def _computed(self, n: fx.Node) -> Any:
        if n.op != "call_function":
            return super().run_node(n)
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        if n.target is torch.ops.aten.view.default:
            # A derivative may lie in other strides than the graph states.
            return args[0].reshape(args[1])
        if n.target is torch.ops.aten.detach.default:  # AOTAutograd's, about a derivative that nobody was to take
            return args[0]
        replaced = differentiable(n)
        if replaced is not None:
            return replaced(*args, **kwargs)
        if _is_foreign(n):
            return self._undifferentiated(n)
        if not op_name(n).endswith("norm_backward"):
            result = super().run_node(n)
            if not _lacks_derivative(result):
                return result
        # PyTorch's derivative of a normalization's backward lets mean and deviation follow the input; ours are saved.
        smaller = compat.decomposition_of(n.target)
        return self._undifferentiated(n) if smaller is None else smaller(*args, **kwargs)

    def _undifferentiated(self, n: fx.Node) -> Any:
        self.opaque.add(n)
        with torch.no_grad():
            return super().run_node(n)


def _is_foreign(n: fx.Node) -> bool:
    """An operator that is not PyTorch's own; whether it has a derivative shows only when it is taken."""
    return isinstance(n.target, compat.OpOverload) and n.target.namespace not in ("aten", "prims")


def _lacks_derivative(result: Any) -> bool:
    items = result if isinstance(result, (tuple, list)) else (result,)
    names = [item.grad_fn.name() for item in items if isinstance(item, Tensor) and item.grad_fn is not None]
    return any(name.endswith("NotImplemented") for name in names)
