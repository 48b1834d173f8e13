"""Public test helper: a hypothesis strategy of random small differentiable programs, and how to run them.

A program is plain data: a list of steps on matrices, each naming earlier values by number, so that a failing one is
printed and shrunk. Sizes are odd on purpose, and values lie in a range in which no operator overflows.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import strategies as st

from fxcompress.testing_graphs import Partition

Shape = tuple[int, int]
SMOOTH: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "gelu": F.gelu,
    "silu": F.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "softmax": lambda x: torch.softmax(x, -1),
    "log_softmax": lambda x: torch.log_softmax(x, -1),
    "norm": lambda x: F.layer_norm(x, x.shape[-1:], eps=0.1),
    "square": lambda x: x * x * 0.1,
}
MASKED: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "relu": F.relu,
    "leaky_relu": lambda x: F.leaky_relu(x, 0.1),
    "relu6": lambda x: F.relu6(x * 4),
    "abs": torch.abs,
    "clamp": lambda x: x.clamp(-0.5, 0.75),
    "dropout": lambda x: torch.where(x.sin() > -0.5, x / 0.8, 0.0),
    "signs": lambda x: x + x.detach().sign() * 0.1,
    "spread": lambda x: x - x.amax(-1, keepdim=True) * 0.5,
    "largest": lambda x: x * 0.5 + x.max(-1, keepdim=True).values,
}
MOVED: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "transpose": lambda x: x.t(),
    "reshape": lambda x: x.reshape(x.shape[1], x.shape[0]),
    "slice": lambda x: x[:, 1:],
    "halves": lambda x: torch.cat([x[:, 2:], x[:, :2]], 1),
}
BINARY: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "add": torch.add,
    "mul": torch.mul,
    "maximum": torch.maximum,
    "where": lambda a, b: torch.where(a > b, a, b * 0.5),
    "cat": lambda a, b: torch.cat([a, b], 0),
}
UNARY = {**SMOOTH, **MASKED, **MOVED}


@dataclass(frozen=True, slots=True)
class Step:
    """One operator; `args` are numbers of earlier values, `cols` the output width of a linear layer."""

    name: str
    args: tuple[int, ...]
    cols: int = 0


@dataclass(frozen=True, slots=True)
class Program:
    """Steps on a matrix of `shape`; value 0 is the input, value i the result of step i-1. Returns the `results`."""

    shape: Shape
    dtype: torch.dtype
    steps: tuple[Step, ...]
    results: tuple[int, ...]
    partition: Partition

    def inputs(self, seed: int = 0) -> tuple[torch.Tensor, ...]:
        """Real values: the input matrix, then one weight per linear layer."""
        generator = torch.Generator().manual_seed(seed)
        made: list[torch.Tensor] = []
        for rows, cols in (self.shape, *self._weights()):
            values = torch.randn(rows, cols, generator=generator, dtype=torch.float64)
            scale = 1.0 if not made else rows**-0.5
            made.append((values * scale).to(self.dtype).requires_grad_())
        return tuple(made)

    def _weights(self) -> list[Shape]:
        shapes = self.shapes()
        return [(shapes[step.args[0]][1], step.cols) for step in self.steps if step.name == "linear"]

    def shapes(self) -> list[Shape]:
        """Shapes of all values."""
        found = [self.shape]
        for step in self.steps:
            found.append(shape_after(step, found))
        return found

    def __call__(self, x: torch.Tensor, *weights: torch.Tensor) -> list[Any]:
        values, unused = [x], list(weights)
        for step in self.steps:
            args = [values[i] for i in step.args]
            if step.name == "linear":
                values.append(args[0] @ unused.pop(0))
            elif step.name in BINARY:
                values.append(BINARY[step.name](args[0], args[1]))
            else:
                values.append(UNARY[step.name](args[0]))
        return [values[i] for i in self.results]


def shape_after(step: Step, shapes: list[Shape]) -> Shape:
    """The shape of a step's result."""
    rows, cols = shapes[step.args[0]]
    if step.name == "linear":
        return rows, step.cols
    if step.name in ("transpose", "reshape"):
        return cols, rows
    if step.name == "slice":
        return rows, cols - 1
    if step.name == "cat":
        return rows + shapes[step.args[1]][0], cols
    return rows, cols


@st.composite
def programs(draw: st.DrawFn, max_steps: int = 7) -> Program:
    """Chains and graphs of linear layers, activations, norms, masks, views, concatenations and sums."""
    shapes: list[Shape] = [(draw(st.integers(3, 41)), draw(st.integers(3, 70)))]
    steps: list[Step] = []
    for _ in range(draw(st.integers(2, max_steps))):
        at = draw(st.sampled_from([len(shapes) - 1, draw(st.integers(0, len(shapes) - 1))]))
        step = draw(st.sampled_from(possible(at, shapes)))
        if step.name == "linear":
            step = Step("linear", step.args, draw(st.integers(3, 50)))
        steps.append(step)
        shapes.append(shape_after(step, shapes))
    last = len(shapes) - 1
    results = draw(st.sampled_from([(last,), (last, draw(st.integers(1, last - 1)))]))
    dtype = draw(st.sampled_from([torch.float32, torch.float32, torch.bfloat16, torch.float64]))
    partition: Partition = draw(st.sampled_from(["bases", "min_cut", "default"]))
    return Program(shapes[0], dtype, tuple(steps), results, partition)


def possible(at: int, shapes: list[Shape]) -> list[Step]:
    """The steps that may follow on value number `at`."""
    rows, cols = shapes[at]
    moves = set(MOVED) if at == 0 else {"slice", "halves"} if cols <= 3 else set()  # a view of the input is no output
    fits = [Step(name, (at,)) for name in UNARY if name not in moves]
    for other, shape in enumerate(shapes):
        fits += [Step(name, (at, other)) for name in BINARY if shape == (rows, cols) and rows < 90]
    return [*fits, *[Step("linear", (at,))] * 8]
