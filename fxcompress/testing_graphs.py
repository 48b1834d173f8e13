"""Public test helpers for the graph passes: real forward/backward pairs of small functions, copied, run and measured.

`capture` traces a function with AOTAutograd, partitions it and returns a `Pair`; `run` executes a pair node by node, by
position as AOTAutograd does, so that a broken partition contract shows as a wrong gradient. `Meter` counts the storages
alive while a graph runs, as an oracle of predicted bytes.
"""

import math
import weakref
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, Literal

import torch
from functorch.compile import (  # type: ignore[import-untyped]
    aot_function,
    default_partition,
    min_cut_rematerialization_partition,
    nop,
)
from torch import fx

from fxcompress import compat
from fxcompress.passes.alias import hint
from fxcompress.passes.copy_graph import copy_graph
from fxcompress.passes.find_saved import placeholders

Partition = Literal["default", "min_cut", "bases"]
"""PyTorch's partitioners: save what autograd would; its min cut; its min cut with views recomputed, as we use it."""
Function = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Pair:
    """A forward and a backward graph with real inputs for them; `tangents` are fixed numbers, one per output."""

    fw: fx.GraphModule
    bw: fx.GraphModule
    num_fwd_outputs: int
    inputs: tuple[Any, ...]
    tangents: tuple[torch.Tensor, ...]

    def copy(self) -> "Pair":
        """The same pair with graphs of its own; the passes edit graphs in place."""
        return Pair(copy_graph(self.fw), copy_graph(self.bw), self.num_fwd_outputs, self.inputs, self.tangents)


@dataclass(frozen=True, slots=True)
class Ran:
    """What one forward and backward gave."""

    outputs: tuple[Any, ...]
    saved: tuple[Any, ...]
    gradients: tuple[torch.Tensor | None, ...]

    @property
    def saved_nbytes(self) -> int:
        """Bytes of the distinct storages saved; those of inputs and outputs included."""
        return sum(storages(self.saved).values())


def capture(
    function: Function, inputs: Sequence[Any], partition: Partition = "bases", *, dynamic: bool = False
) -> Pair:
    """Trace `function(*inputs)` and its backward; inputs that require gradients get one.

    Args:
        function: maps tensors to a tensor or several; every one is an output of the forward graph.
        inputs: real values; parameters are inputs too.
        partition: who decides what is saved.
        dynamic: sizes become symbols.
    """
    found: list[tuple[fx.GraphModule, fx.GraphModule, int]] = []

    def partition_fn(joint: fx.GraphModule, joint_inputs: Any, *, num_fwd_outputs: int, **kwargs: Any) -> Any:
        split = default_partition if partition == "default" else min_cut_rematerialization_partition
        with compat.recomputing_views(partition == "bases"):
            pair = split(joint, joint_inputs, num_fwd_outputs=num_fwd_outputs, **kwargs)
        found.append((copy_graph(pair[0]), copy_graph(pair[1]), num_fwd_outputs))
        return pair

    traced = aot_function(function, nop, nop, partition_fn, dynamic=dynamic)
    traced(*inputs)
    fw, bw, count = found[0]
    tangents = [node.meta["val"] for node in placeholders(bw) if node.name.startswith("tangents")]
    return Pair(fw, bw, count, tuple(inputs), tuple(fixed_numbers(tangent) for tangent in tangents))


def capture_module(module: torch.nn.Module, inputs: Sequence[Any], partition: Partition = "bases") -> Pair:
    """`capture` of a module; its parameters and buffers come first among the inputs."""
    state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    names = list(state)

    def function(*flat: Any) -> Any:
        return torch.func.functional_call(module, dict(zip(names, flat, strict=False)), flat[len(names) :])

    return capture(function, (*state.values(), *inputs), partition)


def fixed_numbers(like: torch.Tensor) -> torch.Tensor:
    """Different numbers of size one, the same in every run."""
    shape = [hint(size) for size in like.shape]
    numbers = torch.cos(torch.arange(math.prod(shape), dtype=torch.float64) * 1.7 + 0.3)
    return numbers.reshape(shape).to(like.dtype)


def run(pair: Pair, *, compiled: bool = False) -> Ran:
    """Run forward and backward on the pair's inputs; `compiled` runs the generated code instead of an interpreter."""
    outs = _call(pair.fw, pair.inputs, compiled)
    saved = outs[pair.num_fwd_outputs :]
    gradients = _call(pair.bw, backward_inputs(saved, pair.tangents), compiled)
    return Ran(tuple(outs[: pair.num_fwd_outputs]), tuple(saved), tuple(gradients))


def backward_inputs(saved: Sequence[Any], tangents: Sequence[torch.Tensor]) -> list[Any]:
    """Saved values and tangents in the order of the partition contract: sizes, tensors, tangents."""
    sizes = [value for value in saved if not isinstance(value, torch.Tensor)]
    return [*sizes, *(value for value in saved if isinstance(value, torch.Tensor)), *tangents]


def _call(gm: fx.GraphModule, inputs: Sequence[Any], compiled: bool) -> list[Any]:
    with torch.no_grad():
        if compiled:
            gm.recompile()
            return list(gm.forward(*inputs))
        return list(fx.Interpreter(gm).run(*inputs))


def bits(value: torch.Tensor) -> torch.Tensor:
    """The bytes of a tensor, by which NaNs and signed zeros are compared too."""
    return value.detach().contiguous().reshape(-1).view(torch.uint8)


def same(left: Sequence[Any], right: Sequence[Any]) -> bool:
    """Whether two flat sequences are bit-equal, with equal dtypes and shapes."""
    return len(left) == len(right) and all(_same(a, b) for a, b in zip(left, right, strict=True))


def _same(a: Any, b: Any) -> bool:
    if not isinstance(a, torch.Tensor) or not isinstance(b, torch.Tensor):
        return a is b or bool(a == b)
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(bits(a), bits(b))


def distance(left: Sequence[torch.Tensor | None], right: Sequence[torch.Tensor | None]) -> float:
    """Norm of the difference relative to the norm of `right`, over all tensors together."""
    pairs = [(a.double(), b.double()) for a, b in zip(left, right, strict=True) if a is not None and b is not None]
    error = sum(float((a - b).square().sum()) for a, b in pairs)
    size = sum(float(b.square().sum()) for _, b in pairs)
    return float((error / size) ** 0.5) if size else float(error > 0)


def storages(values: object) -> dict[int, int]:
    """Distinct storages of real tensors: identity → bytes."""
    leaves = compat.tensors_in(values)
    return {leaf.untyped_storage()._cdata: leaf.untyped_storage().nbytes() for leaf in leaves}


class Meter(fx.Interpreter):
    """Runs a graph, frees each value after its last use, and counts the bytes of the storages alive after each node.

    Args:
        gm: the graph.
        uncounted: values whose storages are left out.
        silent: nodes whose results' storages are left out too.
    """

    def __init__(self, gm: fx.GraphModule, uncounted: Sequence[Any], silent: Set[str] = frozenset()) -> None:
        super().__init__(gm)
        self.uncounted = set(storages(uncounted))
        self.silent = silent
        self.alive: dict[int, int] = {}
        self.curve: dict[str, int] = {}

    def watch(self, value: object) -> None:
        """Count the storages of `value` until they are freed."""
        for leaf in compat.tensors_in(value):
            storage = leaf.untyped_storage()
            key = storage._cdata
            if key not in self.uncounted and key not in self.alive:
                self.alive[key] = storage.nbytes()
                weakref.finalize(storage, self.alive.pop, key, None)

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n.name in self.silent:
            self.uncounted |= set(storages(result))
        if n.op == "call_function":
            self.watch(result)
            self.curve[n.name] = sum(self.alive.values())
        return result


class _Recorder(fx.Interpreter):
    """Remembers what every node computes."""

    def __init__(self, gm: fx.GraphModule) -> None:
        super().__init__(gm, garbage_collect_values=False)
        self.found: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        self.found[n] = super().run_node(n)
        return self.found[n]


def node_values(gm: fx.GraphModule, inputs: Sequence[Any]) -> Mapping[fx.Node, Any]:
    """What every node computes for `inputs`."""
    recorder = _Recorder(gm)
    with torch.no_grad():
        recorder.run(*inputs)
    return recorder.found


def measure(pair: Pair) -> tuple[dict[str, int], dict[str, int]]:
    """Bytes alive after each node of the forward and of the backward, as an interpreter that frees values has them.

    What the caller holds is not counted: inputs, and the gradients that the backward returns.
    """
    with torch.no_grad():
        forward = Meter(pair.fw, pair.inputs)
        saved = list(forward.run(*pair.inputs))[pair.num_fwd_outputs :]
        incoming = backward_inputs(saved, [tangent.clone() for tangent in pair.tangents])
        forward.env.clear()
        del saved
        backward = Meter(pair.bw, pair.inputs, makers_of_results(pair.bw, incoming))
        backward.watch(incoming)
        backward.boxed_run(incoming)
    return forward.curve, backward.curve


def makers_of_results(gm: fx.GraphModule, inputs: Sequence[Any]) -> set[str]:
    """Nodes whose results lie in the storages that the graph returns."""
    values = node_values(gm, inputs)
    (end,) = gm.graph.find_nodes(op="output")
    returned = set(storages(values[end]))
    return {node.name for node, value in values.items() if node is not end and returned & set(storages(value))}
