"""Peak memory of a training step of the large models on a CUDA device, without one.

    python -m bench.peaks [--models vit_base,…] [--variants plain,default,…] [--toy] [--json file]

Each model is traced once on fake tensors under bf16 autocast; its graphs are partitioned, lowered for an H200, and the
allocations of the generated code are replayed (`fxcompress.replay`). Next to it stands what the memory model
predicts. Parameters, gradients, the batch and what libraries need inside their calls are left out.
"""

import argparse
import functools
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor, fx, nn

from bench.compat import Pair
from bench.compat.fake_cuda import DEVICE, fake_cuda, gpu_layouts, lower
from bench.device.training import BATCHES
from bench.models.large import LARGE
from bench.record import append_rows, environment, megabytes, ratio, wide_console
from bench.step_graphs import Joint, Partitioner, partition, plain, saved_nbytes, trace
from bench.traffic import SETTINGS
from bench.widths import WIDTHS, options_of
from fxcompress.compat import FakeTensorMode
from fxcompress.partition import ActcompPartitioner
from fxcompress.passes.find_channels_last import find_channels_last
from fxcompress.passes.liveness import Machine, find_peak
from fxcompress.replay import Moment
from fxcompress.replayed_peak import replay_pair

REFERENCE = "plain"
_TOY_BATCH = 4
BLOCK = 512
"""Bytes that the CUDA caching allocator rounds up to."""


@dataclass(frozen=True, slots=True)
class Row:
    """One model under one variant; bytes. `at`: the line of the generated code at which the peak stands."""

    model: str
    variant: str
    batch: int
    saved_nbytes: int
    predicted_peak_nbytes: int
    forward_peak_nbytes: int
    backward_peak_nbytes: int
    at: str
    seconds: float

    @property
    def peak_nbytes(self) -> int:
        """The largest of the step."""
        return max(self.forward_peak_nbytes, self.backward_peak_nbytes)


class Autocast(nn.Module):
    """A module whose forward runs under bf16 autocast."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: Tensor) -> Tensor:
        """As the module's."""
        with torch.autocast("cpu", torch.bfloat16):
            loss: Tensor = self.module(*args)
        return loss


def main() -> int:
    """Print one table per model as it comes, append JSON lines."""
    arguments = _arguments()
    about = environment()
    for name in arguments.models.split(","):
        batch = _TOY_BATCH if arguments.toy else BATCHES[name]
        joint = trace_large(name, batch, arguments.toy)
        rows = [measure(name, variant, batch, joint) for variant in arguments.variants.split(",")]
        wide_console().print(table(rows))
        if arguments.json:
            append_rows(arguments.json, ({"bench": "peaks", **_as_json(row), **about} for row in rows))
    return 0


def trace_large(name: str, batch: int, toy: bool) -> Joint:
    """The joint graph of one of `LARGE` under bf16 autocast."""
    module, args = LARGE[name](batch, toy)
    mode = FakeTensorMode()
    faked: dict[int, Tensor] = {}
    for part in module.modules():
        tables: tuple[dict[str, Any], ...] = (part._parameters, part._buffers)
        for held in tables:
            for key, value in held.items():
                if value is not None:
                    held[key] = faked.setdefault(id(value), _faked(value, mode))
    inputs = tuple(mode.from_tensor(value) for value in args)
    with mode:
        return trace(Autocast(module.train()), inputs)


def measure(model: str, variant: str, batch: int, joint: Joint) -> Row:
    """Partition, lower and replay one variant."""
    start = time.perf_counter()
    chosen: Partitioner = plain if variant == REFERENCE else ActcompPartitioner(options_of(variant))
    pair, count = partition(joint, chosen), joint.num_fwd_outputs
    saved, predicted = saved_nbytes(pair[0], count), predict(pair, count)
    forward, backward = replay_step(pair, count, {} if variant == REFERENCE else SETTINGS)
    peaks = [max(moments, key=lambda moment: moment.nbytes) for moments in (forward, backward)]
    at = max(peaks, key=lambda moment: moment.nbytes).line[:120]
    seconds = time.perf_counter() - start
    return Row(model, variant, batch, saved, predicted, peaks[0].nbytes, peaks[1].nbytes, at, seconds)


def predict(pair: Pair, num_fwd_outputs: int) -> int:
    """What the memory model says of the pair on a GPU."""
    fw, bw = pair
    with gpu_layouts():
        return find_peak(fw, bw, num_fwd_outputs, _machine(fw)).peak_bytes


def replay_step(
    pair: Pair, num_fwd_outputs: int, settings: Mapping[str, object], *, block: int = BLOCK
) -> tuple[list[Moment], list[Moment]]:
    """Live bytes along the generated code of both graphs, gradients left out."""
    fw, bw = pair
    with fake_cuda():
        lowering = functools.partial(lower, settings=settings)
        return replay_pair(fw, bw, num_fwd_outputs, _machine(fw), lowering, block=block)


def _machine(fw: fx.GraphModule) -> Machine:
    return Machine(True, bool(find_channels_last(fw)))


def _faked(value: Tensor, mode: FakeTensorMode) -> Tensor:
    fake = mode.from_tensor(value.detach())
    return nn.Parameter(fake) if isinstance(value, nn.Parameter) else fake


def table(rows: list[Row]) -> Table:
    """One model's variants, against the first."""
    columns = ("variant", "saved MB", "forward MB", "backward MB", "vs plain", "predicted MB", "predicted/replayed")
    view = Table(*columns, title=f"{rows[0].model}, batch {rows[0].batch}", title_justify="left")
    for row in rows:
        view.add_row(
            row.variant,
            *(megabytes(n) for n in (row.saved_nbytes, row.forward_peak_nbytes, row.backward_peak_nbytes)),
            ratio(rows[0].peak_nbytes, row.peak_nbytes),
            megabytes(row.predicted_peak_nbytes),
            f"{row.predicted_peak_nbytes / row.peak_nbytes:.3f}",
        )
    return view


def _as_json(row: Row) -> dict[str, object]:
    return {**asdict(row), "peak_nbytes": row.peak_nbytes, "machine": str(DEVICE)}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(LARGE), help="comma-separated")
    known = "comma-separated: plain, default, exact, 4 bit, a budget with any of ours (4 bit 25%%)"
    parser.add_argument("--variants", default=",".join((REFERENCE, *WIDTHS)), help=known)
    parser.add_argument("--toy", action="store_true", help="small models of the same structure")
    parser.add_argument("--json", type=Path, help="append one JSON line per row to this file")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
