"""Triton kernels that compute a chain of pointwise operators and encode what it reads or makes, as generated source.

    kernel = jit(write_source(chain))

The kernel is `kernel.encode` with another load stage: a thread holds the same elements, loads the chain's inputs,
computes in fp32, stores results, and quantizes as ever. Between its operators a chain rounds nothing but what it says,
as Inductor's kernels do. Equal chains are one function.
"""

import functools
import hashlib
import linecache
from typing import Any

import triton
import triton.language as tl
from triton.language.extra import libdevice

from fxcompress.codecs.affine.kernel import store_groups
from fxcompress.codecs.chains import Chain
from fxcompress.codecs.runs import load_repeated, load_run, rows, store_values
from fxcompress.codecs.valueset.kernel import store_blocks

NAME = "compute_and_encode"
"""Of every such kernel."""
PER_CODEC = ("BITS", "STOCHASTIC", "KEEPS", "RECIPROCAL")
"""Compile-time parameters that have the number of an encode behind their name."""
SHARED = ("GROUP", "LANES", "TILE", "VECTOR", "RAGGED")


def write_source(chain: Chain) -> str:
    """The kernel's source. Its parameters: `<name>_ptr` of inputs and stored values, `codes<k>_ptr` and `word<k>_ptr`
    of each encode, `<name>_ptr` of masks; `n_groups`, `cols`, `salt<k>`; `PER_CODEC` with k behind, `PERIOD_<name>`
    of each repeated input, a multiple of 8, and `SHARED`. Rows are one row where something is repeated."""
    numbers = range(len(chain.encoded))
    pointers = [f"{name}_ptr" for name in (*chain.inputs, *chain.stored)]
    pointers += [f"{part}{k}_ptr" for k in numbers for part in ("codes", "word")]
    pointers += [f"{name}_ptr" for name in chain.masks]
    salts = [f"salt{k}" for k in numbers]
    constants = [f"{name}{k}" for k in numbers for name in PER_CODEC]
    constants += [f"PERIOD_{name}" for name in chain.repeated]
    typed = [f"{name}: tl.constexpr" for name in (*constants, *SHARED)]
    lines = [
        f"@triton.jit(do_not_specialize={['n_groups', *salts]})",
        f"def {NAME}({', '.join([*pointers, 'n_groups', 'cols', *salts, *typed])}):",
        "    UNITS: tl.constexpr = GROUP // (8 * LANES)",
        "    base = tl.program_id(0) * TILE",
        "    offset, column, end = rows(base, n_groups, cols, TILE, GROUP, VECTOR, RAGGED)",
        "    live = base + tl.arange(0, TILE)[:, None] < n_groups",
        *_loads(chain),
        *_computation(chain),
    ]
    for k, name in enumerate(chain.encoded):
        own, *rest = (f"{part}{k}" for part in PER_CODEC)
        call = f"{name}_units, codes{k}_ptr, word{k}_ptr, base, n_groups, salt{k}, {own}, GROUP, {', '.join(rest)}"
        lines.append(f"    store_groups({call}, LANES, TILE)")
    lines += [f"    store_blocks({name}_units, {name}_ptr, base, n_groups, GROUP, LANES, TILE)" for name in chain.masks]
    return "\n".join(lines) + "\n"


def _loads(chain: Chain) -> list[str]:
    """Everything that is loaded once, before anything is computed, so that all of it is under way together."""
    lines = []
    for name in chain.inputs:
        if name in chain.repeated:
            continue
        lines += [
            f"    {name}_last = tl.load({name}_ptr + offset + (end - 1)).to(tl.float32) if RAGGED else 0.0",
            f"    {name}_units = ()",
            "    for u in tl.static_range(UNITS):",
            "        at = column + u * 8 * LANES",
            f"        x = load_run({name}_ptr + offset, at, end, {name}_last, TILE, LANES, VECTOR, RAGGED)",
            f"        {name}_units += (x,)",
        ]
    return lines


def _computation(chain: Chain) -> list[str]:
    """Steps and stores, run by run."""
    made = [name for name in (*chain.encoded, *chain.masks) if name not in chain.inputs]
    lines = [f"    {name}_units = ()" for name in made]
    lines.append("    for u in tl.static_range(UNITS):")
    for name in chain.repeated:
        place = f"{name}_ptr, base, n_groups, column + u * 8 * LANES, end, PERIOD_{name}, GROUP"
        lines.append(f"        {name}_now = load_repeated({place}, TILE, LANES, RAGGED)")
    lines += [f"        {name}_run = ()" for name in (*chain.stored, *made)]
    lines.append("        for i in tl.static_range(8):")
    sources = {name: f"{name}_now[i]" if name in chain.repeated else f"{name}_units[u][i]" for name in chain.inputs}
    lines += [f"            {name} = {source}" for name, source in sources.items()]
    lines += [f"            {name} = {expression}" for name, expression in chain.steps]
    lines += [f"            {name}_run += ({name}.to({name}_ptr.dtype.element_ty),)" for name in chain.stored]
    lines += [f"            {name}_run += ({name},)" for name in made]
    for name in chain.stored:
        place = f"{name}_ptr + offset, {name}_run, column + u * 8 * LANES, end, live"
        lines.append(f"        store_values({place}, TILE, LANES, VECTOR, RAGGED)")
    return lines + [f"        {name}_units += ({name}_run,)" for name in made]


@functools.cache
def jit(source: str) -> Any:
    """The `@triton.jit` function of a source; equal sources give one function."""
    # Triton, and Inductor that copies a kernel into its own code, read sources from files.
    name = f"<fxcompress chain {hashlib.sha256(source.encode()).hexdigest()[:16]}>"
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    scope: dict[str, Any] = {
        "__name__": __name__, "triton": triton, "tl": tl, "libdevice": libdevice, "rows": rows, "load_run": load_run,
        "load_repeated": load_repeated, "store_values": store_values, "store_groups": store_groups,
        "store_blocks": store_blocks,
    }  # fmt: skip
    exec(compile(source, name, "exec"), scope)
    return scope[NAME]
