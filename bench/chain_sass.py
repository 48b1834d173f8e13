"""Machine code of kernels that compute a chain and encode, beside Inductor's kernel for the chain alone.

    python -m bench.chain_sass [--arch 90] [--json]

Per element: instructions of both and of the encode by itself, and the arithmetic of the chain in either (products,
sums, fused ones, special functions), which must be the same for results to be. Nothing here is a time.
"""

import argparse
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType

import torch
import torch.nn.functional as F
import triton
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from bench.compat.fake_cuda import compile_generated, fake_cuda, gpu_layouts, lower
from bench.kernel_bytes import kernel_sources
from bench.record import wide_console
from bench.sass import POINTERS, compile_kernel, count_registers, disassemble, load_width
from fxcompress import compat
from fxcompress.codecs.affine import Affine, chain_kernel, launch
from fxcompress.codecs.chains import Chain
from fxcompress.compat import FakeTensorMode
from fxcompress.passes.expressions import expression_of


@dataclass(frozen=True, slots=True)
class Example:
    """A function of `full` tensors, of which the first `encoded` are encoded, and `short` ones that repeat.

    `mask`: where its result is not positive is packed too.
    """

    function: Callable[..., Tensor]
    full: int = 1
    encoded: int = 1
    short: int = 0
    mask: bool = False


CHAINS: Mapping[str, Example] = MappingProxyType(
    {
        "gelu": Example(F.gelu),
        "tanh gelu": Example(lambda x: F.gelu(x, approximate="tanh")),
        "swiglu": Example(lambda x, y: F.silu(x) * y, full=2, encoded=2),
        "norm relu": Example(lambda x, m, s, w, b: F.relu((x - m) * s * w + b), short=4, mask=True),
        "norm add relu": Example(lambda x, y, m, s, w, b: F.relu((x - m) * s * w + b + y), full=2, short=4, mask=True),
    }
)
ARITHMETIC = ("FADD", "FMUL", "FFMA", "MUFU")
SIZE, PERIOD = 1 << 20, 256
"""Elements of full and short tensors."""


@dataclass(frozen=True, slots=True)
class Counts:
    """One kernel; `per_element` and `arithmetic` are instructions per element."""

    chain: str
    what: str
    arch: int
    per_element: float
    arithmetic: tuple[float, ...]
    registers: int
    spills: int
    barriers: int
    load_bits: int
    store_bits: int


def trace(example: Example, dtype: torch.dtype, cols: int = SIZE) -> fx.GraphModule:
    """Its function in Inductor's operators."""
    with FakeTensorMode(), gpu_layouts():
        shape = (cols // PERIOD, PERIOD) if example.short else (cols,)
        inputs = [torch.empty(shape, dtype=dtype) for _ in range(example.full)]
        inputs += [torch.empty(PERIOD, dtype=dtype) for _ in range(example.short)]
        gm = make_fx(example.function, decomposition_table=compat.inductor_decompositions())(*inputs)
    gm.graph.eliminate_dead_code()
    return gm


def chain_of(gm: fx.GraphModule, encoded: Sequence[str], *, short: int = 0, mask: bool = False) -> Chain:
    """As `fuse` makes it, of a whole graph: inputs i0, i1, …, the last `short` of them repeated, the result t, r as a
    reader of memory sees it, and the mask k."""
    inputs = gm.graph.find_nodes(op="placeholder")
    calls = [node for node in gm.graph.nodes if node.op == "call_function"]
    names = {node: f"i{i}" for i, node in enumerate(inputs)} | {node: f"t{i}" for i, node in enumerate(calls)}
    names[calls[-1]] = "t"
    steps = tuple((names[node], str(expression_of(node, names.__getitem__))) for node in calls)
    dtype = str(calls[-1].meta["val"].dtype).removeprefix("torch.")
    steps += (("r", f"t.to(tl.{dtype}).to(tl.float32)"),)
    loaded = tuple(names[node] for node in inputs)
    masks = ("k",) if mask else ()
    steps += (("k", "r <= 0.0"),) if mask else ()
    return Chain(loaded, steps, ("t",), tuple(encoded), masks, loaded[len(loaded) - short :])


def measure(name: str, codec: Affine, dtype: torch.dtype, arch: int) -> Counts:
    """The kernel for one of `CHAINS`, its encodes and its mask."""
    example, count = CHAINS[name], CHAINS[name].encoded
    mask = example.mask and launch.packs_masks([codec], SIZE)
    chain = chain_of(trace(example, dtype), [f"i{i}" for i in range(count)], short=example.short, mask=mask)
    return measure_chain(chain, dtype, name=name, codec=codec, arch=arch)


def measure_chain(
    chain: Chain, dtype: torch.dtype, *, name: str = "", codec: Affine | None = None, arch: int = 90
) -> Counts:
    """The kernel for a chain; `codec`, by default of 4 bits, encodes all that it encodes."""
    codec, count = codec or Affine(4), len(chain.encoded)
    constants = launch.chain_constants([codec] * count, ragged=False, vector=True)
    constants |= {f"PERIOD_{x}": PERIOD for x in chain.repeated}
    parameters = {f"{x}_ptr": POINTERS[dtype] for x in (*chain.inputs, *chain.stored)}
    parameters |= {f"{x}_ptr": "*u8" for x in chain.masks}
    for k in range(count):
        parameters |= {f"codes{k}_ptr": "*u8", f"word{k}_ptr": "*i32"}
    parameters |= {"n_groups": "i32", "cols": "i32", **{f"salt{k}": "i32" for k in range(count)}}
    kernel = chain_kernel.jit(chain_kernel.write_source(chain))
    cubin = compile_kernel(kernel, parameters, constants, arch, launch.WARPS)
    elements = int(str(constants["TILE"])) * codec.group
    return _counts(name, f"{codec.bits} bit", arch, cubin, elements / (32 * launch.WARPS))


def measure_alone(name: str, dtype: torch.dtype) -> Counts:
    """Inductor's own kernel for the chain, on the H200 that is not there, in its first configuration."""
    gm = trace(CHAINS[name], dtype)
    with fake_cuda(), tempfile.TemporaryDirectory() as folder:
        (source,) = kernel_sources(lower(gm, is_backward=False).source).values()
        compiled = next(compile_generated(source, Path(folder)))
    return _counts(name, "alone", 90, compiled.cubin, compiled.blocks["x"] / (32 * compiled.warps))


def _counts(name: str, what: str, arch: int, cubin: bytes, per_thread: float) -> Counts:
    opcodes = [line.opcode for line in disassemble(cubin)]
    count = Counter(opcode.partition(".")[0] for opcode in opcodes)
    widths = {kind: [load_width(o) for o in opcodes if o.startswith(kind)] for kind in ("LDG", "STG")}
    return Counts(
        name,
        what,
        arch,
        round(len(opcodes) / per_thread, 2),
        tuple(round(count[kind] / per_thread, 2) for kind in ARITHMETIC),
        count_registers(cubin),
        count["LDL"] + count["STL"],
        count["BAR"],
        max(widths["LDG"]),
        max(widths["STG"]),
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table, or one JSON line per kernel."""
    parser = argparse.ArgumentParser(prog="python -m bench.chain_sass", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    parser.add_argument("--arch", type=int, default=90, choices=(80, 90))
    options = parser.parse_args(argv)
    rows = []
    for name in CHAINS:
        rows.append(measure_alone(name, torch.bfloat16))
        rows += [measure(name, Affine(bits), torch.bfloat16, options.arch) for bits in (2, 4)]
    if options.json:
        for row in rows:
            print(json.dumps({"triton": triton.__version__, **asdict(row)}), flush=True)
        return
    from rich.table import Table

    table = Table(title=f"Triton {triton.__version__}, bf16; arithmetic: {', '.join(ARITHMETIC)}")
    for head in asdict(rows[0]):
        table.add_column(head)
    for row in rows:
        table.add_row(*(" ".join(map(str, v)) if isinstance(v, tuple) else str(v) for v in asdict(row).values()))
    wide_console().print(table)


if __name__ == "__main__":
    main()
