"""Codecs as hand-written Triton kernels: which there are, running one on tensors, tracing one into a graph.

    kernels = find(codec, cols, dtype)                  # None: use the codec's ATen
    parts = kernels.encode(rows, salt)                  # runs, or becomes one node under make_fx
    rows = kernels.decode(parts, cols, dtype)

Results are those of `codec.encode` and `codec.decode`, bit for bit, except for the codes of groups that hold NaN or
Inf, which decode alike. Triton is imported by `find`, and only for a codec that has kernels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from types import MappingProxyType
from typing import Any

import torch
from torch import fx
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import statically_known_true

from fxcompress import compat
from fxcompress.codecs.base import Codec
from fxcompress.codecs.chains import Chain

_MODULES = MappingProxyType(
    {
        "affine": "fxcompress.codecs.affine.launch",
        "block2d": "fxcompress.codecs.block2d.launch",
        "dual": "fxcompress.codecs.dual.launch",
        "valueset": "fxcompress.codecs.valueset.launch",
    }
)


@dataclass(frozen=True, slots=True)
class Launch:
    """One kernel call, not yet made.

    Attributes:
        kernel: a `@triton.jit` function.
        programs: size of the one-dimensional grid, int or SymInt.
        inputs: tensors by parameter name, read only.
        outputs: tensors by parameter name, whose content the kernel defines.
        numbers: run-time integers by parameter name, int or SymInt.
        constants: compile-time parameters by name.
    """

    kernel: Any
    programs: Any
    inputs: dict[str, torch.Tensor]
    outputs: dict[str, torch.Tensor]
    numbers: dict[str, Any]
    constants: dict[str, object]


@dataclass(frozen=True, slots=True)
class Kernels:
    """The two kernels of a codec.

    Attributes:
        encode: contiguous `[*lead, cols]` and the salt, an int → payload as `codec.fields` states.
        decode: payload, cols, dtype → `[*lead, cols]`.
    """

    encode: Callable[[torch.Tensor, int], tuple[torch.Tensor, ...]]
    decode: Callable[[tuple[torch.Tensor, ...], int, torch.dtype], torch.Tensor]


def wanted(x: torch.Tensor) -> bool:
    """Whether Triton kernels run on tensors like `x`."""
    return x.device.type == "cuda"


def find(codec: Codec, cols: int, dtype: torch.dtype) -> Kernels | None:
    """The kernels that store rows of `cols` elements of `dtype` as `codec` does, if there are any."""
    if codec.name not in _MODULES:
        return None
    module = import_module(_MODULES[codec.name])
    if module.refuse(codec, cols, dtype):
        return None

    def encode(rows: torch.Tensor, salt: int) -> tuple[torch.Tensor, ...]:
        return perform(module.encode(codec, rows, salt))

    def decode(parts: tuple[torch.Tensor, ...], cols: int, dtype: torch.dtype) -> torch.Tensor:
        (rows,) = perform(module.decode(codec, parts, cols, dtype))
        return rows

    return Kernels(encode, decode)


def fits_chain(codecs: Sequence[Codec], cols: int, dtype: torch.dtype) -> bool:
    """Whether one kernel can compute a chain of `cols` elements and encode values of `dtype` with each of `codecs`."""
    if any(codec.name != "affine" for codec in codecs):
        return False
    return not import_module(_MODULES["affine"]).refuse_together(codecs, cols, dtype)


def fits_mask(mask: Codec, codecs: Sequence[Codec], cols: int) -> bool:
    """Whether a kernel that quantizes values with `codecs`, if any, can also pack a mask of `cols` elements."""
    if find(mask, cols, torch.bool) is None or mask.name != "valueset":
        return False
    return bool(import_module(_MODULES["affine"]).packs_masks(codecs, cols))


def fills_tiles(codecs: Sequence[Codec], cols: int) -> bool:
    """Whether a chain's kernel for `cols` elements reads each of them once, so that results may lie over inputs."""
    return bool(import_module(_MODULES["affine"]).fills_tiles(codecs, cols))


def encode_chain(
    chain: Chain, codecs: Sequence[Codec], rows: Sequence[torch.Tensor], dtypes: Sequence[torch.dtype]
) -> tuple[torch.Tensor, ...]:
    """Compute and encode what `fits_chain`; runs, or becomes one node under make_fx.

    Args:
        chain: what is computed.
        codecs: of `chain.encoded`.
        rows: `chain.inputs`, `[cols]` each, or a part of it that repeats.
        dtypes: of `chain.stored`.

    Returns:
        `chain.stored`, `[cols]` each, and all payloads one after the other, those of `chain.masks` last.
    """
    launch: Launch = import_module(_MODULES["affine"]).encode_chain(chain, codecs, rows, dtypes)
    return perform(launch)


def perform(launch: Launch) -> tuple[torch.Tensor, ...]:
    """Run the kernel and return its outputs in order; under make_fx, record it as one node instead."""
    if compat.is_tracing():
        return compat.triton_node(
            launch.kernel, launch.programs, launch.inputs, launch.outputs, launch.numbers, launch.constants
        )
    launch.kernel[(launch.programs,)](**launch.inputs, **launch.outputs, **launch.numbers, **launch.constants)
    return tuple(launch.outputs.values())


def trace(
    kernels: Kernels, rows: torch.Tensor, decompositions: object | None = None
) -> tuple[fx.GraphModule, fx.GraphModule]:
    """Encode and decode as graphs of one kernel node each.

    Args:
        kernels: from `find`, for the cols and dtype of `rows`.
        rows: `[*lead, cols]`, best a fake tensor; its values are not read.
        decompositions: table under which the allocation of the outputs is traced.

    Returns:
        Graphs rows → (parts…) and (parts…) → (rows,). Give the kernel of the first its salt by `set_salt`.
    """

    def encode(rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return kernels.encode(rows, 0)

    def decode(*parts: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (kernels.decode(parts, rows.shape[-1], rows.dtype),)

    how: dict[str, Any] = {"tracing_mode": "fake", "decomposition_table": decompositions}
    with torch.no_grad():
        packed = make_fx(encode, **how)(rows)
        (output,) = packed.graph.find_nodes(op="output")
        parts = [part.meta["val"] for part in output.args[0]]
        unpacked = make_fx(decode, **how)(*parts)
    for gm in (packed, unpacked):
        share_outputs(gm)
    return packed, unpacked


def share_outputs(gm: fx.GraphModule) -> None:
    """Let the fake results of every kernel node share the storages of the buffers that it is given to fill.

    The operator is functional, but Inductor lets the kernel fill the buffers themselves, and memory is counted by that.
    """
    for node in compat.triton_nodes(gm.graph):
        given: Any = node.kwargs["kwargs"]
        filled = {name: given[name].meta["val"] for name in node.meta["val"]}
        results = [(node.meta["val"][name], val) for name, val in filled.items()]
        results += [(result.meta["val"], filled[result.args[1]]) for result in node.users]
        node.meta["val"] = filled
        compat.move_storages(gm.graph, results)


def set_salt(node: fx.Node, salt: int, number: int | None = None) -> None:
    """Name the tensor in the noise of an encode kernel, the `number`-th of a chain's; a kernel without noise is left as
    it is."""
    name = "salt" if number is None else f"salt{number}"
    arguments: Any = node.kwargs["kwargs"]
    if name in arguments:
        node.update_kwarg("kwargs", {**arguments, name: signed(salt)})


def signed(salt: int) -> int:
    """The low 32 bits as an int32, so that every salt has one type in a kernel's signature."""
    return (salt + 2**31) % 2**32 - 2**31


def aligned(x: torch.Tensor) -> torch.Tensor:
    """`x` contiguous, at an address that kernels may load 16 bytes from; a copy unless it is known to be so."""
    x = x.contiguous()
    return x if statically_known_true(x.storage_offset() * x.itemsize % 16 == 0) else x.clone()
