"""Machine code of the Triton kernels that Inductor generated, for the H200 that is not there.

Run in torch 2.13 with triton 3.9 and in torch 2.11 with triton 3.6.
"""

import hashlib
import importlib.util
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.compat.fake_cuda.device import CAPABILITY, PROPERTIES

_NUMEL = re.compile(r"^    ([xyz]|r\d+_)numel = (\d+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Compiled:
    """A kernel in one of the configurations among which Inductor chooses by time.

    Attributes:
        blocks: by dimension, elements of one program or, for a looped reduction, of one round.
        warps: per program.
        cubin: the machine code.
    """

    blocks: Mapping[str, int]
    warps: int
    cubin: bytes


def numels(source: str) -> dict[str, int]:
    """Sizes of a generated kernel's index space by dimension: x, y, z, r0_, r1_."""
    return {name: int(count) for name, count in _NUMEL.findall(source)}


def compile_generated(source: str, folder: Path) -> Iterator[Compiled]:
    """The kernel of one `async_compile.triton` call, in each of its configurations. Only inside `fake_cuda`.

    Args:
        source: as from `kernel_sources`.
        folder: where its module is written; Triton reads sources from files.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    tuner = _load(source, folder)
    meta = tuner.triton_meta
    for config in tuner.configs:
        constants = {**meta.get("constants", {}), **config.kwargs}
        signature = {name: "constexpr" if name in constants else kind for name, kind in meta["signature"].items()}
        asked = ASTSource(fn=tuner.fn, signature=signature, constexprs=constants, attrs=meta["configs"][0])
        target = GPUTarget("cuda", 10 * CAPABILITY[0] + CAPABILITY[1], PROPERTIES.warp_size)
        options = {"num_warps": config.num_warps, "num_stages": config.num_stages, "enable_fp_fusion": True}
        made = triton.compile(asked, target=target, options=options)
        blocks = {name.removesuffix("BLOCK").lower(): size for name, size in config.kwargs.items()}
        yield Compiled(blocks, config.num_warps, made.asm["cubin"])


def _load(source: str, folder: Path) -> Any:
    """Inductor's tuner, which its decorator makes of the kernel."""
    from torch._inductor.runtime.triton_heuristics import CachingAutotuner

    body = source.split("'''", 1)[1].replace("triton_helpers.set_driver_to_gpu()", "")
    path = folder / f"kernel_{hashlib.sha256(body.encode()).hexdigest()[:16]}.py"
    path.write_text(body)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (tuner,) = (value for value in vars(module).values() if isinstance(value, CachingAutotuner))
    return tuner
