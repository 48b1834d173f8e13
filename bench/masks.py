"""Masks in the codes of normalized values, and masks beside them: saved bytes, and the gradient's error.

    python -m bench.masks [--models cnn,resnet] [--bits 8,4,2] [--spread 0,1] [--json file]

Each model is traced once and cut as for Inductor; the pair is run by an interpreter, so that nothing is compiled.
Errors are those of all gradients together against PyTorch's own pair on the same numbers. `spread`: how far weights
and biases of batch norms lie about those that training begins with, in units of the weight.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor, fx, nn

from bench.models.zoo import ZOO
from bench.record import append_rows, environment, megabytes, wide_console
from bench.step_graphs import Joint, Partitioner, as_positional, partition, plain, saved_nbytes, trace
from bench.traffic import INLINED
from fxcompress.options import Options
from fxcompress.partition import ActcompPartitioner
from fxcompress.testing_graphs import backward_inputs, distance

BASE = Options(disable_passes=(*INLINED, "pick_lowering", "fuse"))
WAYS = {"beside": ("fold_masks",), "in codes": ()}


@dataclass(frozen=True, slots=True)
class Row:
    """One model under one width and one way to store masks."""

    model: str
    spread: float
    bits: str
    masks: str
    saved_bytes: int
    rel_err: float


class _InPlace(fx.Interpreter):
    """Runs a graph whose results lie in memory as it says, which a library's own need not."""

    def run_node(self, n: fx.Node) -> Any:
        result, val = super().run_node(n), n.meta.get("val")
        if isinstance(result, (tuple, list)) and isinstance(val, (tuple, list)):
            return [_lying_as(one, like) for one, like in zip(result, val, strict=True)]
        return _lying_as(result, val)


def _lying_as(value: Any, like: Any) -> Any:
    if not isinstance(value, Tensor) or not isinstance(like, Tensor) or value.stride() == like.stride():
        return value
    return torch.empty_strided(like.shape, like.stride(), dtype=value.dtype).copy_(value)


def measure(name: str, spread: float, widths: Sequence[int]) -> list[Row]:
    """One model; the first widths are the defaults."""
    torch.manual_seed(0)
    module, args, kwargs = ZOO[name]()
    _spread(module, spread)
    joint = trace(as_positional(module, kwargs), [*args, *kwargs.values()])
    _, exact = _step(joint, plain)
    rows = []
    for bits in ("default", *map(str, widths)):
        options = BASE if bits == "default" else replace(BASE, bits=int(bits), operand_bits=int(bits))
        for masks, left_out in WAYS.items():
            at = replace(options, disable_passes=(*options.disable_passes, *left_out))
            saved, gradients = _step(joint, ActcompPartitioner(at))
            rows.append(Row(name, spread, bits, masks, saved, distance(gradients, exact)))
    return rows


def _spread(module: nn.Module, spread: float) -> None:
    generator = torch.Generator().manual_seed(1)
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d) and norm.affine:
            with torch.no_grad():
                norm.weight.add_(torch.randn(norm.weight.shape, generator=generator), alpha=spread / 2)
                norm.bias.add_(torch.randn(norm.bias.shape, generator=generator) - 0.5, alpha=spread)


def _step(joint: Joint, partitioner: Partitioner) -> tuple[int, list[Tensor | None]]:
    """Saved bytes and gradients of one step, whose loss has a gradient of 1."""
    fw, bw = partition(joint, partitioner)
    torch.manual_seed(1)
    with torch.no_grad():
        values = [value.clone() if isinstance(value, Tensor) else value for value in joint.values]
        outs = list(_InPlace(fw).run(*values))
        loss = outs[: joint.num_fwd_outputs]
        tangents = [torch.ones_like(loss[-1])]
        gradients = _InPlace(bw).run(*backward_inputs(outs[joint.num_fwd_outputs :], tangents))
    return saved_nbytes(fw, joint.num_fwd_outputs), list(gradients)


def table(rows: Sequence[Row]) -> Table:
    """One line per width and way."""
    view = Table("bits", "masks", "saved MB", "gradient error", title=f"{rows[0].model}, spread {rows[0].spread:g}")
    for row in rows:
        view.add_row(row.bits, row.masks, megabytes(row.saved_bytes), f"{row.rel_err:.3f}")
    return view


def main() -> int:
    """Print one table per model and spread."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="cnn,resnet")
    parser.add_argument("--bits", default="4,2")
    parser.add_argument("--spread", default="0,1")
    parser.add_argument("--json", type=Path, help="append one JSON line per row to this file")
    arguments = parser.parse_args()
    for name in arguments.models.split(","):
        for spread in map(float, arguments.spread.split(",")):
            rows = measure(name, spread, list(map(int, arguments.bits.split(","))))
            wide_console().print(table(rows))
            if arguments.json:
                append_rows(arguments.json, ({"bench": "masks", **environment(), **asdict(row)} for row in rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
