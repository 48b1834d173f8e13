"""Measured sensitivities: what storing one tensor alone does to the gradient, by repeating the backward graph."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

from fxcompress import codecs, compat
from fxcompress.codecs.base import Codec
from fxcompress.codecs.order import from_rows, order_in_rows, to_rows
from fxcompress.errors import UnsupportedGraphError
from fxcompress.options import Options
from fxcompress.partition import ActcompPartitioner
from fxcompress.passes.copy_graph import copy_graph
from fxcompress.passes.find_saved import placeholders
from fxcompress.plan import Decision

Measure = Callable[[int, fx.GraphModule, Sequence[Any]], None]
"""Called with the number of the graph, a backward graph that reads the tensors as they are, and its inputs."""


class Prober(compat.partitioner_base()):  # type: ignore[misc]
    """Our partitioner without encodings, whose backward graphs show their inputs to `measure` first."""

    def __init__(self, options: Options, measure: Measure) -> None:
        left = (*options.disable_passes, "restore_kept")  # plans speak of what may be encoded
        prepared = replace(options, limit=0, save_plan=None, disable_passes=left)
        self._cut = ActcompPartitioner(prepared, decompose=options.inner == "inductor")
        self._measure = measure
        self._graphs = 0

    def uuid(self) -> str:
        """A new name for each: what is measured must not come from a cache."""
        return f"prober {id(self)}"

    def __call__(self, gm: fx.GraphModule, joint_inputs: Sequence[object], **kwargs: Any) -> compat.Partition:
        fw, bw = self._cut(gm, joint_inputs, **kwargs)
        graph, measure = self._graphs, self._measure
        show(bw, lambda plain, values: measure(graph, plain, values))
        self._graphs += 1
        return fw, bw


def show(bw: fx.GraphModule, seen: Callable[[fx.GraphModule, Sequence[Any]], object]) -> None:
    """Let a backward graph, before anything else, call `seen` with a copy of itself and its inputs."""
    inputs = placeholders(bw)
    plain = copy_graph(bw)
    # Compiled autograd, and a compiled function that calls backward(), would have Dynamo trace what measures.
    look = torch.compiler.disable(seen)  # type: ignore[no-untyped-call]

    def call(*values: Any) -> Any:
        look(plain, values)
        return values[-1]

    with bw.graph.inserting_after(inputs[-1]):
        shown = bw.graph.call_function(call, tuple(inputs))
    shown.meta = dict(inputs[-1].meta)
    inputs[-1].replace_all_uses_with(shown, delete_user_cb=lambda user: user is not shown)
    bw.recompile()


def probing_backend(options: Options, measure: Measure) -> Callable[..., Any]:
    """A backend without encodings and code generation that shows every backward graph and its inputs to `measure`."""
    partitioner = Prober(options, measure)
    compiler = compat.compile_with_aot_eager if options.inner == "aot_eager" else compat.partition_with_inductor

    def backend(gm: fx.GraphModule, inputs: Sequence[Any], **kwargs: Any) -> Callable[..., Any]:
        return compiler(gm, inputs, partitioner)

    return backend


def coefficients(
    bw: fx.GraphModule,
    decisions: Sequence[Decision],
    values: Sequence[Any],
    draws: int,
    known: Mapping[str, float],
) -> tuple[list[tuple[Decision, float]], float]:
    """C of every affine tensor of one graph, measured unless known, and the squared norm of its gradients."""
    names = [node.name for node in placeholders(bw)]
    exact = _gradients(bw, values)
    found = []
    for decision in decisions:
        if decision.codec != "affine":
            continue
        if decision.tensor.name in known:
            found.append((decision, known[decision.tensor.name]))
            continue
        shared = {d.tensor.name for d in decisions if d.tensor.storage == decision.tensor.storage}
        codec = codecs.make("affine", **dict(decision.params))
        total = 0.0
        for salt in range(draws):
            stored = _stored(values[names.index(decision.tensor.name)], codec, decision.row, salt)
            changed = [_like(v, stored) if n in shared else v for n, v in zip(names, values, strict=True)]
            total += _squared(a - b for a, b in zip(_gradients(bw, changed), exact, strict=True))
        found.append((decision, total / draws * (2**codec.bits - 1) ** 2))
    return found, _squared(exact)


def _gradients(bw: fx.GraphModule, values: Sequence[Any]) -> list[Tensor]:
    results = fx.Interpreter(bw).run(*values)
    return [result for result in results if isinstance(result, Tensor) and result.is_floating_point()]


def _squared(tensors: Any) -> float:
    return sum(float(tensor.double().square().sum()) for tensor in tensors)


def _stored(value: Tensor, codec: Codec, row: int, salt: int) -> Tensor:
    """What the backward would read instead of `value`, in the same memory layout."""
    order = order_in_rows(value, row)
    if order is None:
        raise UnsupportedGraphError(f"a saved tensor of sizes {tuple(value.shape)} is not dense in memory")
    rows = codec.decode(codec.encode(to_rows(value, order), salt), order.cols, value.dtype)
    return from_rows(rows.contiguous(), order)


def _like(value: Tensor, stored: Tensor) -> Tensor:
    """`value`, a view of the storage of which `stored` is the new content."""
    return stored.as_strided(value.shape, value.stride(), value.storage_offset() % max(stored.numel(), 1))
