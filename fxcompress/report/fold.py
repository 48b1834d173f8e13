"""Fold the decisions of one graph into rows: tensors of identical layers that are treated alike become one row."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fxcompress.facts import CALLER_HELD
from fxcompress.plan import Decision
from fxcompress.report.text import layer_pattern

TOP = "(top)"
"""Stands for the module path of what belongs to no submodule."""


@dataclass(frozen=True, slots=True)
class Row:
    """Decisions that agree in layer pattern, op, shape, dtype, need, consumers, representation and bytes."""

    first: Decision
    layer: str
    count: int
    nbytes_before: int
    """Storage bytes that these tensors add to the saved ones; 0 if an earlier row already counted the storage."""
    nbytes_after: int
    predicted_error: float = 0.0
    """Of all of them together on the gradient, relative."""

    @property
    def name(self) -> str:
        """Name of the tensor, or what the names of all of them begin with."""
        return self.first.tensor.name + (" …" if self.count > 1 else "")


def fold(decisions: Sequence[Decision]) -> tuple[Row, ...]:
    """Return the rows of all tensors that are counted as saved, largest first, equal ones in graph order."""
    groups: dict[object, list[tuple[Decision, int, int]]] = {}
    for decision, before, after in counted(decisions):
        if decision.tensor.refusal not in CALLER_HELD:
            groups.setdefault(_key(decision, before, after), []).append((decision, before, after))
    rows = [
        Row(
            first=group[0][0],
            layer=_common_layer([decision for decision, _, _ in group]),
            count=len(group),
            nbytes_before=sum(before for _, before, _ in group),
            nbytes_after=sum(after for _, _, after in group),
            predicted_error=math.hypot(*(decision.predicted_error for decision, _, _ in group)),
        )
        for group in groups.values()
    ]
    return tuple(sorted(rows, key=lambda row: -row.nbytes_before))


def counted(decisions: Sequence[Decision]) -> list[tuple[Decision, int, int]]:
    """Return each decision with the bytes that it adds before and after: a storage counts where it is first seen."""
    seen: set[str] = set()
    triples = []
    for decision in decisions:
        tensor = decision.tensor
        held = tensor.refusal in CALLER_HELD
        before = 0 if held or tensor.storage in seen else tensor.storage_nbytes
        seen.add(tensor.storage)
        triples.append((decision, before, 0 if held else decision.nbytes))
    return triples


def _key(decision: Decision, before: int, after: int) -> object:
    tensor = decision.tensor
    return (
        (layer_pattern(tensor.layer), tensor.op, tensor.shape, tensor.dtype, tensor.need, tensor.consumers),
        (decision.codec, decision.params, decision.lowering, tensor.refusal, before, after),
    )


def _common_layer(decisions: Sequence[Decision]) -> str:
    layers = {decision.tensor.layer: None for decision in decisions}
    name = next(iter(layers)) if len(layers) == 1 else layer_pattern(decisions[0].tensor.layer)
    return (name or TOP) + (f" (x{len(decisions)})" if len(decisions) > 1 else "")
