"""Whether generated kernels are held up by memory or by their instructions, from machine code alone.

    python -m bench.issue [--models resnet50] [--variants 'plain;default'] [--top 12] [--json file]

Forward and backward of the large models are lowered for an H200. Every kernel that Inductor generates is compiled for
it in all configurations among which it would choose by time; the one with the fewest instructions counts. Those of
straight code count once, those of a loop once per round. A launch takes at least what its instructions take to issue
and what its bytes take to move, and the larger of both is what stands here: a bound, no time. Left out are kernels of
libraries, ours (`bench.sass` counts those), and those that sum rows and columns at once (layer norm's derivative).
"""

import argparse
import re
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import ceil, prod
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.compat.fake_cuda import Compiled, Lowered, compile_generated, fake_cuda, lower, numels
from bench.device.training import BATCHES
from bench.kernel_bytes import count_kernels, kernel_sources
from bench.models.large import LARGE
from bench.peaks import REFERENCE, trace_large
from bench.record import append_rows, environment, megabytes
from bench.sass import Line, disassemble, load_width
from bench.step_graphs import Joint, Partitioner, partition, plain
from bench.traffic import SETTINGS
from bench.widths import WIDTHS, options_of
from fxcompress.inductor_settings import settings as inductor_settings
from fxcompress.options import Options
from fxcompress.partition import ActcompPartitioner

WARP = 32
_ITEM_BYTES = {"i1": 1, "i8": 1, "u8": 1, "bf16": 2, "fp16": 2, "i32": 4, "fp32": 4, "i64": 8, "fp64": 8}
_LOADED = re.compile(r"tl\.load\((\w+_ptr\d+) ")
_SHORT = 40
ISSUED_PER_S = 132 * 4 * 1.755e9
"""Warp instructions of a whole H200: 4 a clock on each of 132 multiprocessors."""
MOVED_PER_S = 4.1e12
"""Bytes; what copies reach (section `bandwidth` of `bench/results/device.jsonl`)."""
PIPES = {
    "integer": "IMAD IADD3 IADD LEA ISETP LOP3 SHF PRMT VIADD VIMNMX IMNMX SEL BFE SGXT IABS POPC FLO",
    "float": "FADD FMUL FFMA FSETP FSEL FMNMX FSET",
    "convert": "I2F I2FP F2F F2I F2FP MUFU HADD2 HFMA2 HMUL2",
    "memory": "LDG STG RED ATOMG",
    "shared": "LDS STS LDSM SHFL BAR",
}
"""Opcodes by what executes them; the rest are moves, jumps and uniform registers."""
OTHER = "other"
UNSPLIT = ", unsplit"
"""What a variant's name ends in if loops are left as Inductor makes them."""


@dataclass(frozen=True, slots=True)
class Row:
    """All launches of one kernel in a step, or of all of them.

    Attributes:
        model, variant, kernel: the kernel's name, or "all".
        launches: per step.
        elements: of the index spaces of all launches.
        nbytes: that they move.
        issued: warp instructions.
        pipes: of them, by kind.
        load_bits: narrowest load from global memory.
        memory_s, issue_s: what bytes and instructions take; for "all", launch by launch the larger, in `bound_s`.
    """

    model: str
    variant: str
    kernel: str
    launches: int
    elements: int
    nbytes: int
    issued: float
    pipes: Mapping[str, float]
    load_bits: int
    memory_s: float
    issue_s: float
    bound_s: float


@dataclass(frozen=True, slots=True)
class Code:
    """Machine code of one kernel in one configuration, for one launch."""

    issued: float
    pipes: Mapping[str, float]
    load_bits: int


def main() -> int:
    """Print one table per model and variant, append JSON lines."""
    arguments = _arguments()
    about = environment()
    for model in arguments.models.split(","):
        joint = trace_large(model, BATCHES[model], False)
        for variant in arguments.variants.split(";"):
            rows = measure(model, variant, joint)
            Console(width=160).print(table(rows, arguments.top))
            if arguments.json:
                append_rows(arguments.json, ({"bench": "issue", **asdict(row), **about} for row in rows))
    return 0


def measure(model: str, variant: str, joint: Joint) -> list[Row]:
    """A row per generated kernel, the longest first, before them that of all."""
    name = variant.removesuffix(UNSPLIT)
    chosen: Partitioner = plain if name == REFERENCE else ActcompPartitioner(options_of(name))
    ours = SETTINGS if name == variant else inductor_settings(Options(disable_passes=("split_loops",)), on_gpu=True)
    pair, settings = partition(joint, chosen), {} if name == REFERENCE else ours
    rows: list[Row] = []
    with fake_cuda(), tempfile.TemporaryDirectory() as folder:
        for gm, is_backward in zip(pair, (False, True), strict=True):
            given = () if is_backward else range(joint.num_fwd_outputs)
            lowered = lower(gm, is_backward=is_backward, user_outputs=given, settings=settings)
            rows += _rows(model, variant, lowered, Path(folder))
    rows.sort(key=lambda row: -row.bound_s)
    pipes = {pipe: sum(row.pipes.get(pipe, 0.0) for row in rows) for pipe in (*PIPES, OTHER)}
    sums = {name: sum(getattr(row, name) for row in rows) for name in _ADDED}
    return [Row(model, variant, "all", pipes=pipes, load_bits=0, **sums), *rows]


_ADDED = ("launches", "elements", "nbytes", "issued", "memory_s", "issue_s", "bound_s")


def _rows(model: str, variant: str, lowered: Lowered, folder: Path) -> Iterator[Row]:
    launches = Counter[str]()
    nbytes = Counter[str]()
    for kernel in count_kernels(lowered):
        launches[kernel.name] += 1
        nbytes[kernel.name] += kernel.nbytes
    for name, source in kernel_sources(lowered.source).items():
        if "size_hints=" not in source or "RSPLIT_SIZE" in source or not launches[name]:
            continue
        sizes, count = numels(source), launches[name]
        code = min((count_code(made, source) for made in compile_generated(source, folder)), key=lambda c: c.issued)
        memory, issue = nbytes[name] / MOVED_PER_S, count * code.issued / ISSUED_PER_S
        yield Row(
            model=model,
            variant=variant,
            kernel=name,
            launches=count,
            elements=count * prod(sizes.values()),
            nbytes=nbytes[name],
            issued=count * code.issued,
            pipes={pipe: count * issued for pipe, issued in code.pipes.items()},
            load_bits=code.load_bits,
            memory_s=memory,
            issue_s=issue,
            bound_s=max(memory, issue),
        )


def count_code(compiled: Compiled, source: str) -> Code:
    """Warp instructions of one launch of the kernel that was compiled from `source`."""
    code, sizes = disassemble(compiled.cubin), numels(source)
    spans = find_loops(code)
    looped = [any(first <= at <= last for first, last in spans) for at in range(len(code))]
    rounds = prod(ceil(sizes[name] / block) for name, block in compiled.blocks.items() if name.startswith("r"))
    programs = prod(ceil(size / compiled.blocks.get(name, 1)) for name, size in sizes.items() if name in "xyz")
    inner = [line for line, inside in zip(code, looped, strict=True) if inside]
    passes = rounds / _rounds_at_once(inner, compiled, source)
    pipes: defaultdict[str, float] = defaultdict(float)
    for line, inside in zip(code, looped, strict=True):
        pipes[_pipe(line.opcode)] += compiled.warps * programs * (passes if inside else 1)
    widths = [load_width(line.opcode) for line in code if line.opcode.startswith("LDG")]
    return Code(sum(pipes.values()), dict(pipes), min(widths, default=0))


def _rounds_at_once(inner: Sequence[Line], compiled: Compiled, source: str) -> int:
    """How often compilers unrolled the loop, by the bytes that a thread loads of tensors that it reads once."""
    loaded = sum(load_width(line.opcode) // 8 for line in inner if line.opcode.startswith("LDG.E.EF"))
    each = prod(compiled.blocks.values()) / (WARP * compiled.warps)
    names = [name for line in source.splitlines() if "'evict_first'" in line for name in _LOADED.findall(line)]
    wanted = each * sum(_ITEM_BYTES[kind] for name in names for kind in re.findall(rf"'{name}': '\*(\w+)'", source))
    return max(1, round(loaded / wanted)) if wanted else 1


def find_loops(code: Sequence[Line]) -> list[tuple[int, int]]:
    """First and last line of every backward jump, the endless one behind the end left out."""
    at = {line.label: number for number, line in enumerate(code) if line.label}
    jumps = ((at.get(line.target, number), number) for number, line in enumerate(code) if line.opcode == "BRA")
    return [(first, last) for first, last in jumps if first < last]


def table(rows: Sequence[Row], top: int) -> Table:
    """The sum and the `top` longest kernels."""
    columns = ("kernel", "launches", "MB", "per element", *PIPES, "load", "memory ms", "issue ms", "bound ms")
    view = Table(*columns, title=f"{rows[0].model}, {rows[0].variant}", title_justify="left")
    for row in rows[: top + 1]:
        each = [row.issued, *(row.pipes.get(pipe, 0.0) for pipe in PIPES)]
        times = (row.memory_s, row.issue_s, row.bound_s)
        view.add_row(
            shortened(row.kernel),
            str(row.launches),
            megabytes(row.nbytes),
            *(f"{WARP * issued / row.elements:.1f}" for issued in each),
            str(row.load_bits or "–"),
            *(f"{1e3 * seconds:.2f}" for seconds in times),
        )
    return view


def shortened(name: str) -> str:
    """Beginning and end of a kernel's name."""
    return name if len(name) < _SHORT else f"{name[:12]}…{name[-(_SHORT - 13) :]}"


def _pipe(opcode: str) -> str:
    name = opcode.partition(".")[0]
    return next((pipe for pipe, names in PIPES.items() if name in names.split()), OTHER)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="resnet50", help=f"comma-separated, of {', '.join(LARGE)}")
    known = ", ".join((REFERENCE, "exact", *WIDTHS))
    parser.add_argument(
        "--variants", default=f"plain;default{UNSPLIT};default", help=f"of {known}, each with or without '{UNSPLIT}'"
    )
    parser.add_argument("--top", type=int, default=12, help="kernels to list")
    parser.add_argument("--json", type=Path, help="append one JSON line per row to this file")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
