"""Bytes of one training step of a model on fake tensors, part by part.

`Footprint` sums parameters, gradients, the optimizer's state, inputs and the predicted peak of forward and backward.
The peak is a model (`passes/liveness.py`); everything else is counted from shapes.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from fxcompress import compat
from fxcompress.passes.alias import distinct_nbytes
from fxcompress.passes.find_saved import outputs
from fxcompress.passes.liveness import Machine, find_peak

STATES = {"adamw": 2, "sgd": 1, "none": 0}
"""Tensors of a parameter's size and dtype that an optimizer keeps: both moments of AdamW, the momentum of SGD."""


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes that are alive at the predicted peak of a step, by what they are."""

    parameter_bytes: int
    """With buffers."""
    gradient_bytes: int
    """Of all parameters that want one, at their dtype, as if they were alive throughout."""
    optimizer_bytes: int
    input_bytes: int
    peak_bytes: int
    """Predicted, of forward and backward: what is saved, working memory, codecs."""

    @property
    def total_bytes(self) -> int:
        """All parts together."""
        return self.fixed_bytes + self.input_bytes + self.peak_bytes

    @property
    def fixed_bytes(self) -> int:
        """The parts that do not depend on the batch."""
        return self.parameter_bytes + self.gradient_bytes + self.optimizer_bytes


@dataclass(frozen=True, slots=True)
class GraphNeed:
    """What one compiled graph needs: predicted peaks, and what it leaves alive for its backward and for the caller."""

    forward_peak_bytes: int
    backward_peak_bytes: int
    saved_bytes: int
    output_bytes: int
    """Outputs that the caller gets and the graph does not save, alive during its backward and all later graphs."""


def footprint_of(module: nn.Module, inputs: Any, optimizer: str, peak_bytes: int) -> Footprint:
    """Count a module and its inputs; tensors that share a storage count once.

    Args:
        module: with its parameters and buffers, real or fake.
        inputs: arguments of a call, in tuples, dicts and lists.
        optimizer: one of `STATES`.
        peak_bytes: predicted peak of forward and backward.
    """
    trained = storage_bytes(parameter for parameter in module.parameters() if parameter.requires_grad)
    tensors: list[torch.Tensor] = []
    compat.map_tensors(tensors.append, inputs)
    return Footprint(
        parameter_bytes=storage_bytes([*module.parameters(), *module.buffers()]),
        gradient_bytes=trained,
        optimizer_bytes=STATES[optimizer] * trained,
        input_bytes=storage_bytes(tensors),
        peak_bytes=peak_bytes,
    )


def storage_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes of the distinct storages behind dense tensors."""
    storages = [tensor.untyped_storage() for tensor in tensors if tensor.layout is torch.strided]
    return sum({int(storage._cdata): int(storage.nbytes()) for storage in storages}.values())


def need_of(fw: fx.GraphModule, bw: fx.GraphModule, num_fwd_outputs: int, machine: Machine) -> GraphNeed:
    """What a forward/backward pair needs when `machine` runs it."""
    peak = find_peak(fw, bw, num_fwd_outputs, machine)
    given, saved = _tensors(outputs(fw)[:num_fwd_outputs]), _tensors(outputs(fw)[num_fwd_outputs:])
    saved_bytes = distinct_nbytes(saved)
    return GraphNeed(
        peak.forward_peak_bytes, peak.backward_peak_bytes, saved_bytes, distinct_nbytes([*given, *saved]) - saved_bytes
    )


def _tensors(values: Sequence[object]) -> list[fx.Node]:
    nodes = [value for value in values if isinstance(value, fx.Node)]
    return [node for node in nodes if isinstance(node.meta.get("val"), torch.Tensor)]


def stacked_peak(graphs: Sequence[GraphNeed]) -> int:
    """The predicted peak of a step that runs these graphs forward in this order, and backward in the other.

    A graph runs on top of what the earlier ones leave: their saved tensors and their outputs.
    """
    peak, held = 0, 0
    for graph in graphs:
        peak = max(peak, held + graph.forward_peak_bytes, held + graph.backward_peak_bytes + graph.output_bytes)
        held += graph.saved_bytes + graph.output_bytes
    return peak
