"""Bytes that a training step moves and kernels that it launches on a CUDA device, counted without one.

    python -m bench.traffic [--models gpt2,llama] [--bits 8,4,2] [--budgets 50%] [--dtype bf16] [--json file] [--why]
        [--kernels]

Each model is traced once on fake tensors; forward and backward are partitioned by plain Inductor and by actcomp under
several options, lowered for an H200, and every generated kernel's bytes are summed (`bench.kernel_bytes` says what
counts). Nothing is timed, allocated or run. `--why` says what the bytes are that a variant moves more or fewer than
plain Inductor (`bench.traffic_parts`).
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import fx

from bench.compat import Pair
from bench.compat.fake_cuda import fake_cuda, lower
from bench.kernel_bytes import Kernel, count_kernels
from bench.models.blocks import BLOCKS, default_dtype
from bench.record import append_rows, environment, megabytes, ratio, wide_console
from bench.step_graphs import Joint, Partitioner, partition, plain, saved_nbytes, trace
from bench.traffic_parts import OURS, Parts, Step, compare, is_alone, is_coding, is_payload
from fxcompress.compat import FakeTensorMode
from fxcompress.errors import BudgetError
from fxcompress.inductor_settings import settings as inductor_settings
from fxcompress.options import Options
from fxcompress.partition import ActcompPartitioner
from fxcompress.passes.find_saved import outputs

REFERENCE = "plain"
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
INLINED = ("outline",)
"""What a graph traced on CPU must leave out to be the one that a GPU gets."""
SETTINGS = inductor_settings(Options(), on_gpu=True)
"""Under which Inductor generates code for graphs of ours; a user's joint graph gets the same."""
COLUMNS = (
    "variant", "MB/step", "vs plain", "forward", "backward", "libraries", "kernels", "encodes", "decodes",
    "saved MB", "again",
)  # fmt: skip
REASONS = (
    ("payloads", "payload_nbytes"), ("encodes read", "unshared_nbytes"), ("operands", "operand_nbytes"),
    ("saved", "saved_nbytes"), ("least", "least_nbytes"), ("read again", "shared_nbytes"), ("other", "other_nbytes"),
    ("all", "nbytes"),
)  # fmt: skip
"""Columns of `--why`, in percent of plain Inductor's bytes."""


@dataclass(frozen=True, slots=True)
class Phase:
    """The kernels of one graph. Bytes are read plus written.

    Attributes:
        nbytes: of all kernels.
        library_nbytes: of products, convolutions and attention alone.
        generated, library: launches of generated kernels and of libraries.
        ours: generated kernels that compute part of an encode or decode.
        ours_alone: those that compute nothing else.
        ours_alone_nbytes: what they move.
        rereads: bytes of second passes over an input, not part of `nbytes`.
    """

    nbytes: int
    library_nbytes: int
    generated: int
    library: int
    ours: int
    ours_alone: int
    ours_alone_nbytes: int
    rereads: int


@dataclass(frozen=True, slots=True)
class Row:
    """One model under one variant."""

    model: str
    variant: str
    dtype: str
    forward: Phase
    backward: Phase
    saved_nbytes: int
    encoded: int
    """Tensors that are stored encoded."""
    why: Parts
    """The difference from plain Inductor."""

    @property
    def nbytes(self) -> int:
        """Bytes per step."""
        return self.forward.nbytes + self.backward.nbytes


def main() -> int:
    """Count, print one table per model as it comes, append JSON lines."""
    arguments = _arguments()
    names = list(BLOCKS) if arguments.models == "all" else arguments.models.split(",")
    if unknown := [name for name in names if name not in BLOCKS]:
        raise SystemExit(f"unknown model {unknown[0]!r}; known: {', '.join(BLOCKS)}")
    shares = arguments.budgets.split(",") if arguments.budgets else []
    partitioners = variants([int(bits) for bits in arguments.bits.split(",")], shares)
    about = environment()
    console = wide_console()
    for name in names:
        joint = trace_block(name, DTYPES[arguments.dtype])
        rows: list[Row] = []
        reference: Step | None = None
        for variant, partitioner in partitioners.items():
            try:
                pair = partition(joint, partitioner)
            except BudgetError as error:
                console.print(f"{name}, {variant}: {error}")
                continue
            row, step = measure(name, variant, arguments.dtype, joint, pair, reference)
            reference = reference or step
            rows.append(row)
            if arguments.kernels:
                print_kernels(console, variant, step)
        console.print(table(rows))
        if arguments.why:
            console.print(why_table(rows))
        if arguments.json:
            append_rows(arguments.json, ({"bench": "traffic", **as_json(row), **about} for row in rows))
    return 0


def variants(widths: Sequence[int], budgets: Sequence[str] = ()) -> dict[str, Partitioner]:
    """Partitioners by name: `plain`, `exact`, and per width b the defaults with bits=b and operands at b too; of the
    latter also without kernels of ours, without those that compute a chain next to encodes, and under budgets."""
    options = {"exact": Options(lossy=False, disable_passes=INLINED)}
    for bits in widths:
        name = f"{bits} bit"
        options[name] = both = Options(bits=bits, disable_passes=INLINED)
        if bits != Options().operand_bits:
            name, both = f"{name}, operands too", replace(both, operand_bits=bits)
            options[name] = both
            options[f"{name}, ATen"] = replace(both, disable_passes=(*INLINED, "pick_lowering"))
        options[f"{name}, unfused"] = replace(both, disable_passes=(*INLINED, "fuse"))
        options |= {f"{name}, {share}": replace(both, budget=share) for share in budgets}
    return {REFERENCE: plain, **{name: ActcompPartitioner(chosen) for name, chosen in options.items()}}


def trace_block(name: str, dtype: torch.dtype) -> Joint:
    """The joint graph of one of `BLOCKS`."""
    with FakeTensorMode():
        with default_dtype(dtype):
            module, inputs = BLOCKS[name]()
        return trace(module.train(), inputs)


def measure(
    model: str, variant: str, dtype: str, joint: Joint, pair: Pair, reference: Step | None = None
) -> tuple[Row, Step]:
    """Lower one pair of graphs and count; its kernels come with the row. Without a `reference`, it is one."""
    saved = saved_nbytes(pair[0], joint.num_fwd_outputs)
    encoded = count_encoded(pair[0])
    step = lower_pair(pair, joint.num_fwd_outputs, SETTINGS if reference else {})
    forward, backward = phase(step.forward), phase(step.backward)
    return Row(model, variant, dtype, forward, backward, saved, encoded, compare(step, reference or step)), step


def lower_pair(pair: Pair, num_fwd_outputs: int, settings: Mapping[str, Any] = SETTINGS) -> Step:
    """The kernels of forward and backward graph, generated under these settings of Inductor's."""
    names = [out.name if isinstance(out, fx.Node) else "" for out in outputs(pair[0])]
    with fake_cuda():
        forward = lower(pair[0], is_backward=False, user_outputs=range(num_fwd_outputs), settings=settings)
        backward = lower(pair[1], is_backward=True, settings=settings)
        before, after = count_kernels(forward), count_kernels(backward)
    buffers = forward.outputs
    payloads = [buffer for buffer, name in zip(buffers, names, strict=True) if is_payload(name)]
    return Step(tuple(before), tuple(after), frozenset(buffers), frozenset(payloads))


def count_encoded(fw: fx.GraphModule) -> int:
    """Tensors that a forward graph returns encoded."""
    (output,) = fw.graph.find_nodes(op="output")
    names = [node.name for node in output.all_input_nodes if is_payload(node.name)]
    return len({name.removeprefix(OURS).split("_")[0] for name in names})


def phase(kernels: Sequence[Kernel]) -> Phase:
    """Sum up one graph's kernels."""
    generated = [kernel for kernel in kernels if not kernel.library]
    ours = [kernel for kernel in generated if any(map(is_coding, kernel.origins))]
    alone = [kernel for kernel in ours if is_alone(kernel)]
    nbytes = sum(kernel.nbytes for kernel in kernels)
    return Phase(
        nbytes=nbytes,
        library_nbytes=nbytes - sum(kernel.nbytes for kernel in generated),
        generated=len(generated),
        library=len(kernels) - len(generated),
        ours=len(ours),
        ours_alone=len(alone),
        ours_alone_nbytes=sum(kernel.nbytes for kernel in alone),
        rereads=sum(kernel.rereads for kernel in kernels),
    )


def table(rows: Sequence[Row]) -> Table:
    """One model's variants; the first is the reference."""
    reference = rows[0]
    view = Table(*COLUMNS, title=f"{reference.model}, {reference.dtype}", title_justify="left")
    for row in rows:
        parts = (row.forward, row.backward)
        view.add_row(
            row.variant,
            megabytes(row.nbytes),
            ratio(row.nbytes, reference.nbytes, 3),
            *(megabytes(part.nbytes) for part in parts),
            megabytes(sum(part.library_nbytes for part in parts)),
            " + ".join(str(sum(getattr(part, kind) for part in parts)) for kind in ("generated", "library")),
            f"{row.forward.ours} of {row.encoded}" if row.encoded else "–",
            f"{row.backward.ours} ({row.backward.ours_alone})" if row.encoded else "–",
            megabytes(row.saved_nbytes),
            megabytes(sum(part.rereads for part in parts)),
        )
    return view


def why_table(rows: Sequence[Row]) -> Table:
    """What the bytes are that each variant moves more or fewer than the first, in percent of the first's."""
    reference = rows[0]
    title = f"{reference.model}: bytes more than {reference.variant}, % of its own"
    view = Table("variant", *(name for name, _ in REASONS), title=title, title_justify="left")
    for row in rows[1:]:
        shares = [100 * getattr(row.why, field) / reference.nbytes for _, field in REASONS]
        view.add_row(row.variant, *(f"{share:+.1f}" for share in shares))
    return view


def print_kernels(console: Console, variant: str, step: Step) -> None:
    """Every launch with its bytes in MB."""
    for title, found in (("forward", step.forward), ("backward", step.backward)):
        view = Table("kernel", "MB", "reads", "writes", title=f"{variant}, {title}", title_justify="left")
        for kernel in found:
            view.add_row(kernel.name, megabytes(kernel.nbytes), _buffers(kernel.reads), _buffers(kernel.writes))
        console.print(view)


def as_json(row: Row) -> dict[str, Any]:
    """All fields, and the sum."""
    return {**asdict(row), "nbytes": row.nbytes}


def _buffers(nbytes: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {megabytes(size)}" for name, size in nbytes.items() if size >= 10_000)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="all", help=f"comma-separated: {', '.join(BLOCKS)}")
    parser.add_argument("--bits", default="8,4,2", help="comma-separated widths for actcomp")
    parser.add_argument("--budgets", help="comma-separated shares of plain's peak, for each width with operands too")
    parser.add_argument("--dtype", default="bf16", choices=tuple(DTYPES), help="of parameters and activations")
    parser.add_argument("--why", action="store_true", help="print what makes the difference from plain Inductor")
    parser.add_argument("--kernels", action="store_true", help="list every kernel too")
    parser.add_argument("--json", type=Path, help="append one JSON line per row to this file")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
