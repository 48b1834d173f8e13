"""Static counts of every Triton kernel's machine code, without a GPU: `python -m bench.sass [--json] [--arch 90]`.

Triton compiles for a stated architecture, the disassembler that it bundles lists the instructions. The kernels' code is
straight, so that the static count is the dynamic one: instructions per element are those of one thread times threads
over the elements of one program. Nothing here is a time.
"""

import argparse
import json
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fxcompress.codecs.affine import Affine, decode_kernel, kernel, launch
from fxcompress.codecs.block2d import Block2d
from fxcompress.codecs.block2d import kernel as cell_kernel
from fxcompress.codecs.block2d import launch as cell_launch
from fxcompress.codecs.dual import Dual
from fxcompress.codecs.dual import kernel as dual_kernel
from fxcompress.codecs.dual import launch as dual_launch
from fxcompress.codecs.valueset import Valueset
from fxcompress.codecs.valueset import kernel as mask_kernel
from fxcompress.codecs.valueset import launch as mask_launch
from fxcompress.codecs.valueset.reference import BLOCK

ARCHS = (80, 90)
_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
POINTERS = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.bool: "*i1"}
_INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)([^;]*)")
_LABEL = re.compile(r"^(\.L_x_\d+):")


@dataclass(frozen=True, slots=True)
class Case:
    """One kernel of one codec for one input.

    Attributes:
        side: "encode" or "decode".
        codec: the configuration.
        dtype: of the uncompressed tensor.
        vector: rows are multiples of 8 elements, aligned to 16 bytes.
        ragged: rows end inside a group.
    """

    side: str
    codec: Affine | Block2d | Dual | Valueset
    dtype: torch.dtype
    vector: bool = True
    ragged: bool = False

    @property
    def label(self) -> str:
        """The case in one line."""
        rows = ("" if self.vector else " unaligned") + (" ragged" if self.ragged else "")
        name = str(self.dtype).removeprefix("torch.")
        if isinstance(self.codec, Valueset):
            return f"{self.side} mask {name}{rows}"
        if isinstance(self.codec, Dual):
            size = f"{self.codec.height}x{self.codec.width}"
            return f"{self.side} dual {self.codec.bits}b {size} {self.codec.rounding} {name}"
        group = "8x8" if isinstance(self.codec, Block2d) else f"G{self.codec.group}"
        kind = f"{self.codec.bits}b {group} {self.codec.rounding}"
        kept = " zero-preserving" if self.codec.zero_preserving else ""
        kept = " sign-preserving" if isinstance(self.codec, Affine) and self.codec.sign_preserving else kept
        return f"{self.side} {kind}{kept} {name}{rows}"


@dataclass(frozen=True, slots=True)
class Counts:
    """What one compiled kernel consists of.

    Attributes:
        label, arch: which case, and the compute capability times ten.
        per_element: instructions that a thread issues per element, averaged.
        registers: per thread.
        spills: LDL and STL instructions.
        barriers: BAR instructions.
        shared: LDS and STS instructions.
        shuffles: SHFL instructions.
        load_bits, store_bits: widest access to global memory.
        branches: jumps and calls other than the final self-loop; masked stores may be skipped by one.
    """

    label: str
    arch: int
    per_element: float
    registers: int
    spills: int
    barriers: int
    shared: int
    shuffles: int
    load_bits: int
    store_bits: int
    branches: int


@dataclass(frozen=True, slots=True)
class Line:
    """One instruction, the label in front of it, and the label that it names, each empty where there is none."""

    opcode: str
    label: str
    target: str


def cases() -> Iterator[Case]:
    """Every kernel × dtype × bits × rounding × what codes keep for full rows, and ragged ones at 2 bits."""
    for dtype in launch.DTYPES:
        for bits in (1, 2, 4, 8):
            for kept in ({}, {"zero_preserving": True}, {"sign_preserving": True})[: 3 if bits > 1 else 1]:
                for rounding in ("stochastic", "nearest"):
                    yield Case("encode", Affine(bits, 0, rounding, **kept), dtype)
                yield Case("decode", Affine(bits, 0, "stochastic", **kept), dtype)
        for side in ("encode", "decode"):
            yield Case(side, Affine(2), dtype, ragged=True)
            yield Case(side, Affine(2), dtype, vector=False, ragged=True)
    for bits in (1, 2, 4, 8):
        for dtype in launch.DTYPES:
            yield Case("encode", Block2d(8, 8, bits=bits), dtype)
            yield Case("decode", Block2d(8, 8, bits=bits), dtype)
    for side in ("encode", "decode"):
        for size, bits, dtype in ((16, 2, torch.bfloat16), (16, 2, torch.float32), (32, 4, torch.float16)):
            yield Case(side, Dual(size, size, bits=bits), dtype)
        yield Case(side, Dual(56, 56, bits=2), torch.bfloat16)
    yield Case("encode", Block2d(8, 8, bits=2, zero_preserving=True), torch.bfloat16)
    yield Case("encode", Block2d(8, 8, bits=2, rounding="nearest"), torch.bfloat16)
    for side in ("encode", "decode"):
        yield Case(side, Valueset(), torch.bool)


def compile_kernel(
    function: Any, parameters: dict[str, str], constants: dict[str, object], arch: int, warps: int
) -> bytes:
    """The cubin of a `@triton.jit` function; `parameters` are Triton types by name, pointers aligned to 16 bytes."""
    pointers = [i for i, kind in enumerate(parameters.values()) if kind.startswith("*")]
    source = ASTSource(
        fn=function,
        signature={**parameters, **dict.fromkeys(constants, "constexpr")},
        constexprs=constants,
        attrs={(i,): [["tt.divisibility", 16]] for i in pointers},
    )
    options = {"num_warps": warps, "num_stages": 1, "enable_fp_fusion": True}
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    cubin: bytes = compiled.asm["cubin"]
    return cubin


def measure(case: Case, arch: int) -> Counts:
    """Compile one case and count."""
    function, parameters, constants, warps, elements = _program(case)
    cubin = compile_kernel(function, parameters, constants, arch, warps)
    opcodes = [line.opcode for line in disassemble(cubin)]
    count = Counter(opcode.partition(".")[0] for opcode in opcodes)
    return Counts(
        label=case.label,
        arch=arch,
        per_element=round(len(opcodes) * warps * 32 / elements, 2),
        registers=count_registers(cubin),
        spills=count["LDL"] + count["STL"],
        barriers=count["BAR"],
        shared=count["LDS"] + count["STS"],
        shuffles=count["SHFL"],
        load_bits=_widest(opcodes, "LDG"),
        store_bits=_widest(opcodes, "STG"),
        branches=count["BRA"] + count["CALL"] - 1,
    )


def _program(case: Case) -> tuple[Any, dict[str, str], dict[str, object], int, int]:
    """Function, parameters, constants, warps and elements of one program."""
    pointer = POINTERS[case.dtype]
    if isinstance(case.codec, Valueset):
        parts = (
            {"x_ptr": pointer, "bits_ptr": "*u8"} if case.side == "encode" else {"bits_ptr": "*u8", "y_ptr": pointer}
        )
        tile = mask_launch.ENCODE_TILE if case.side == "encode" else mask_launch.DECODE_TILE
        constants: dict[str, object] = {"TILE": tile}
        if case.side == "decode":
            constants["THREADS"] = mask_launch.THREADS
        function = getattr(mask_kernel, case.side)
        return function, {**parts, "n_blocks": "i32"}, constants, launch.WARPS, tile * BLOCK
    if isinstance(case.codec, Block2d):
        return _cells_program(case, case.codec)
    if isinstance(case.codec, Dual):
        return _planes_program(case, case.codec)
    if case.side == "encode":
        function = kernel.encode
        constants = launch.encode_constants(case.codec, case.ragged, case.vector)
        parts = {"x_ptr": pointer, "codes_ptr": "*u8", "word_ptr": "*i32"}
        parameters = {**parts, "n_groups": "i32", "cols": "i32", "salt": "i32"}
    else:
        function = decode_kernel.decode
        constants = launch.decode_constants(case.codec, case.ragged, case.vector)
        parts = {"codes_ptr": "*u8", "word_ptr": "*i32", "y_ptr": pointer}
        parameters = {**parts, "n_groups": "i32", "cols": "i32"}
    elements = int(str(constants["TILE"])) * case.codec.group
    return function, parameters, constants, launch.WARPS, elements


def _cells_program(case: Case, codec: Block2d) -> tuple[Any, dict[str, str], dict[str, object], int, int]:
    pointer, sizes = POINTERS[case.dtype], {"n_cells": "i32", "down": "i32", "across": "i32"}
    elements = cell_launch.TILE * cell_launch.SIDE**2
    if case.side == "encode":
        parameters = {"x_ptr": pointer, "codes_ptr": "*u8", "word_ptr": "*i32", **sizes, "salt": "i32"}
        return cell_kernel.encode, parameters, cell_launch.encode_constants(codec), launch.WARPS, elements
    parameters = {"codes_ptr": "*u8", "word_ptr": "*i32", "y_ptr": pointer, **sizes}
    return cell_kernel.decode, parameters, cell_launch.decode_constants(codec), launch.WARPS, elements


def _planes_program(case: Case, codec: Dual) -> tuple[Any, dict[str, str], dict[str, object], int, int]:
    pointer, sizes = POINTERS[case.dtype], {"n_planes": "i32", "down": "i32", "across": "i32"}
    parts = {"means_ptr": "*bf16", "codes_ptr": "*u8", "word_ptr": "*i32"}
    constants = dual_launch.decode_constants(codec) if case.side == "decode" else dual_launch.encode_constants(codec)
    elements = int(str(constants["PLANES"])) * codec.height * codec.width
    if case.side == "encode":
        return (
            dual_kernel.encode,
            {"x_ptr": pointer, **parts, **sizes, "salt": "i32"},
            constants,
            launch.WARPS,
            elements,
        )
    return dual_kernel.decode, {**parts, "y_ptr": pointer, **sizes}, constants, launch.WARPS, elements


def disassemble(cubin: bytes) -> list[Line]:
    """The instructions of a kernel in order, but for those that do nothing."""
    lines, label = [], ""
    for text in _inspect("nvdisasm", "-c", cubin).splitlines():
        if found := _LABEL.match(text):
            label = found[1]
        elif (found := _INSTRUCTION.match(text)) and found[1] != "NOP":
            jump = re.search(r"\.L_x_\d+", found[2])
            lines.append(Line(found[1], label, jump[0] if jump else ""))
            label = ""
    return lines


def count_registers(cubin: bytes) -> int:
    """Registers per thread."""
    usage = _inspect("cuobjdump", "-res-usage", cubin)
    registers = re.search(r"REG:(\d+)", usage)
    assert registers, usage
    return int(registers[1])


def load_width(opcode: str) -> int:
    """Bits of one access to global memory."""
    stated = [int(part.lstrip("US")) for part in opcode.split(".")[1:] if part.lstrip("US").isdigit()]
    return stated[0] if stated else 32


def _inspect(tool: str, option: str, cubin: bytes) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        return subprocess.run([_TOOLS / tool, option, path], capture_output=True, text=True, check=True).stdout


def _widest(opcodes: Sequence[str], kind: str) -> int:
    return max((load_width(opcode) for opcode in opcodes if opcode.partition(".")[0] == kind), default=0)


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table, or one JSON line per kernel."""
    parser = argparse.ArgumentParser(prog="python -m bench.sass", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    parser.add_argument("--arch", type=int, action="append", choices=ARCHS, help="default: both")
    parser.add_argument("--only", default="", help="cases whose label contains this text")
    options = parser.parse_args(argv)
    wanted = [case for case in cases() if options.only in case.label]
    counts = (measure(case, arch) for arch in options.arch or ARCHS for case in wanted)
    if options.json:
        for row in counts:
            print(json.dumps({"triton": triton.__version__, **asdict(row)}), flush=True)
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"Triton {triton.__version__}")
    for name in ("kernel", "sm", "instr/elt", "regs", "spills", "BAR", "LDS+STS", "SHFL", "load", "store", "branches"):
        table.add_column(name, justify="left" if name == "kernel" else "right", no_wrap=True)
    for row in counts:
        table.add_row(*(f"{value:.2f}" if isinstance(value, float) else str(value) for value in asdict(row).values()))
    Console(width=150).print(table)


if __name__ == "__main__":
    main()
