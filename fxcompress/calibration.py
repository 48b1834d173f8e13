"""Calibrate in one training step how the gradient's error depends on the width of every saved tensor.

    options = fxcompress.Options(max_error=0.05)
    table = calibration.calibrate(model, lambda compiled: compiled(tokens, targets), "errors.json", options=options)
    compiled = torch.compile(model, backend="actcomp", options={"max_error": 0.05, "calibration": "errors.json"})

The step runs under a plan of its own, at 8 bits, so that it needs little more memory than the steps that follow, and it
is interpreted. With a budget it takes the widest setting that keeps it, and there may be further steps for other cuts
(`next_cut`). Its backward shows the saved tensors and the real gradient of the outputs; `adjoint` then differentiates
the backward, and `curvature` repeats it for a few tensors.
"""

import math
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import fx, nn

from fxcompress import __version__, compat, pipeline, plan_io
from fxcompress.adjoint import Stored, squared_errors
from fxcompress.codecs.affine import Affine
from fxcompress.curvature import bent
from fxcompress.error_table import ErrorTable, GraphErrors, TensorErrors, WidthError
from fxcompress.errors import FxcompressError, OptionError, UnsupportedGraphError
from fxcompress.joint_errors import joined
from fxcompress.limits import widest
from fxcompress.next_cut import NextCut, next_cut
from fxcompress.options import GivenOptions, Options, as_options
from fxcompress.passes.find_saved import placeholders
from fxcompress.passes.fit_error import admitted
from fxcompress.passes.rewrite import decoding_nodes
from fxcompress.perturbation import Repeater
from fxcompress.probe import show
from fxcompress.rewrite_joint import Request, cut_settings
from fxcompress.sensitivity import Run, step_quietly
from fxcompress.watch import interpreting

DRAWS = 8
"""Random directions of the gradient that an estimate averages over."""
Found = Callable[[GraphErrors], object]


class Calibrator(compat.partitioner_base()):  # type: ignore[misc]
    """Cuts as `next_cut` says; the backward graphs, when they run, tell `found` the errors of their tensors."""

    def __init__(self, options: Options, found: Found, known: ErrorTable) -> None:
        self._options, self._found, self._known = options, found, known
        self._told: set[str] = set()
        self.graphs = 0
        """Graphs that will tell their errors when their backward runs."""

    @property
    def inner(self) -> str:
        """The compiler for which it cuts."""
        return self._options.inner

    def uuid(self) -> str:
        """A new name for each: what is measured must not come from a cache."""
        return f"calibrator {id(self)}"

    def __call__(
        self,
        gm: fx.GraphModule,
        joint_inputs: Sequence[object],
        *,
        num_fwd_outputs: int,
        static_lifetime_input_indices: Sequence[int] | None = None,
        **kwargs: Any,
    ) -> compat.Partition:
        cut = compat.Cutter(gm, joint_inputs, num_fwd_outputs, static_lifetime_input_indices)
        request = Request(
            cut, self._options, num_fwd_outputs, static_lifetime_input_indices, decompose=self.inner == "inductor"
        )
        try:
            found = next_cut(gm, request, self._known)
        except UnsupportedGraphError:  # compiled unchanged, and then without a word from us
            return cut(rebuild_more=False)
        if found.is_new:
            self.graphs += 1
            show(found.result.bw, lambda bw, values: self._measure(found, bw, values))
        return found.result.fw, found.result.bw

    def _measure(self, cut: NextCut, bw: fx.GraphModule, values: Sequence[Any]) -> None:
        if cut.result.plan.fingerprint in self._told:
            return
        errors = measured_errors(bw, cut, self._options, values)
        if errors is not None:
            self._told.add(errors.fingerprint)
            self._found(errors)


def measured_errors(bw: fx.GraphModule, cut: NextCut, options: Options, values: Sequence[Any]) -> GraphErrors | None:
    """The errors of one graph's tensors; None if the gradient is zero or not finite.

    Args:
        bw: the rewritten backward.
        cut: what it is part of.
        options: as stated, `max_error` included.
        values: the inputs of `bw`.
    """
    result = cut.result
    stored = _watched(bw, result, widest(options))
    squares, squared, hidden = squared_errors(bw, stored, values, draws=DRAWS)
    if not squared or not math.isfinite(squared + sum(map(sum, squares.values()))):
        return None
    facts = {decision.tensor.name: decision.tensor for decision in result.plan.decisions}
    repeater = Repeater(bw, values)
    squares = bent(squares, stored, facts, repeater)
    for name in sorted(hidden):
        squares[name] = [repeater.squared_error([(stored[name], codec, 1)]) for codec in stored[name].codecs]
    assert options.max_error is not None
    squares = joined(squares, stored, result.encodings, options.max_error**2 * squared, repeater)
    tensors = tuple(
        TensorErrors(
            name,
            tuple(
                WidthError(codec.bits, math.sqrt(square / squared))
                for codec, square in zip(stored[name].codecs, own, strict=True)
            ),
        )
        for name, own in sorted(squares.items())
    )
    return GraphErrors(result.plan.fingerprint, math.sqrt(squared), tensors, cut.bits, cut.operand_bits)


def _watched(bw: fx.GraphModule, result: pipeline.Result, options: Options) -> dict[str, Stored]:
    """Every storage that lossy codes may hold: where the backward reads it, and what it may be stored with."""
    facts = {decision.tensor.name: decision.tensor for decision in result.plan.decisions}
    coded = {d.tensor.name: int(dict(d.params)["bits"]) for d in result.plan.decisions if d.codec == "affine"}
    inputs = {node.name: node for node in placeholders(bw)}
    decoded = decoding_nodes(bw)
    found = {}
    for encoding in result.encodings:
        names = [pair.bw.name for pair in encoding.storage.members]
        ways = tuple(way.codec for way in admitted(encoding, facts, options) if isinstance(way.codec, Affine))
        nodes = (decoded[names[0]],) if names[0] in decoded else tuple(inputs[name] for name in names)
        if ways:
            found[names[0]] = Stored(nodes, coded.get(names[0], 0), ways, encoding.order.row)
    return found


def has_more_cuts(options: Options) -> bool:
    """Whether one step may not be enough to calibrate a graph."""
    return len(cut_settings(options)) > 1


def table_of(graphs: Iterable[GraphErrors]) -> ErrorTable:
    """The table of these graphs, made here."""
    return ErrorTable(tuple(graphs), __version__, str(torch.__version__))


def calibrating_backend(calibrator: Calibrator) -> Callable[..., Any]:
    """A backend that interprets what `calibrator` makes."""
    return interpreting(calibrator, calibrator.inner)


def calibrate(
    model: nn.Module, run: Run, path: str | os.PathLike[str] | None = None, *, options: GivenOptions
) -> ErrorTable:
    """Calibrate in one step of `model`, whose parameters, gradients, buffers and random state stay as they are.

    Args:
        model: the module that will be compiled.
        run: calls what it is given, the compiled model, and returns a scalar loss.
        path: where the table is written; None: nowhere.
        options: those of the training to come, `max_error` and a `budget` included. The table serves other limits, too,
            but what errors do together is tried for this one.

    Raises:
        OptionError: `max_error` is missing.
        BudgetError: no plan found keeps the budget.
        FxcompressError: nothing could be calibrated; says why.
    """
    options = as_options(options)
    if options.max_error is None:
        raise OptionError("option 'max_error' is missing: what is calibrated is the plan that it leads to")
    graphs: dict[str, GraphErrors] = {}
    watched = 0
    while True:
        before = len(graphs)
        calibrator = Calibrator(
            options, lambda errors: graphs.setdefault(errors.fingerprint, errors), table_of(graphs.values())
        )
        step_quietly(model, run, calibrating_backend(calibrator))
        watched = watched or calibrator.graphs
        if len(graphs) == before or not has_more_cuts(options):
            break
    if not graphs:
        seen = f"of {watched} graphs that save something for backward, " if watched else ""
        raise FxcompressError(
            f"nothing to calibrate: {seen}none had a gradient that is finite and not zero; run it on real data, with "
            "gradients"
        )
    table = table_of(graphs.values())
    if path is not None:
        plan_io.save(path, table)
    return table
