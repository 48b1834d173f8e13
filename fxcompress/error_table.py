"""What storing each saved tensor at each width is predicted to do to the gradient. Torch-free.

A table is made from one training step (`fxcompress.calibration`), and a plan under `max_error` is chosen from it. As a
file (`fxcompress calibrate`) it makes every process and rank choose the same plan.
"""

import math
from dataclasses import dataclass

TABLE_VERSION = 3


@dataclass(frozen=True, slots=True)
class WidthError:
    """‖Δ‖/‖gradient‖ for one tensor stored in affine codes of `bits`, all else exact."""

    bits: int
    rel_error: float


@dataclass(frozen=True, slots=True)
class TensorErrors:
    """One saved tensor, named as in plans, with the widths that its need class admits."""

    name: str
    widths: tuple[WidthError, ...]

    def at(self, bits: int) -> float | None:
        """The relative error at this width, None if it is not in the table."""
        return next((width.rel_error for width in self.widths if width.bits == bits), None)

    def least(self, bits: int, operand_bits: int) -> float:
        """The relative error at the fewest bits that these options leave it; what may take 1 bit is no operand."""
        wanted = bits if self.at(1) is not None else operand_bits
        admitted = [width for width in self.widths if width.bits >= wanted] or self.widths
        return min(admitted, key=lambda width: width.bits).rel_error


@dataclass(frozen=True, slots=True)
class GraphErrors:
    """All tensors of one graph that lossy codes may store, keyed by its fingerprint.

    With a budget the graph is one cut of several; `bits` and `operand_bits` are what it was made for.
    """

    fingerprint: str
    gradient_norm: float
    tensors: tuple[TensorErrors, ...]
    bits: int = 8
    operand_bits: int = 8

    def least(self, bits: int, operand_bits: int) -> float:
        """The relative error of the whole gradient where everything takes the fewest bits that these options leave."""
        return math.hypot(*(tensor.least(bits, operand_bits) for tensor in self.tensors))


@dataclass(frozen=True, slots=True)
class ErrorTable:
    """One file: all graphs of a model."""

    graphs: tuple[GraphErrors, ...]
    fxcompress_version: str
    torch_version: str
    schema_version: int = TABLE_VERSION

    def find(self, fingerprint: str) -> GraphErrors | None:
        """The errors of the graph with this fingerprint, or None."""
        return next((graph for graph in self.graphs if graph.fingerprint == fingerprint), None)
