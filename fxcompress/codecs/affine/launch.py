"""Launches of the affine kernels: which codecs and tensors they take, and the constants of each."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.fx.experimental.symbolic_shapes import statically_known_true

from fxcompress.codecs.affine import chain_kernel, decode_kernel, kernel
from fxcompress.codecs.affine.codec import Affine
from fxcompress.codecs.chains import Chain
from fxcompress.codecs.groups import reciprocal
from fxcompress.codecs.lowering import Launch, signed
from fxcompress.codecs.runs import RUN, lanes
from fxcompress.errors import OptionError

WARPS = 4
"""Triton's default; a graph node could not carry another number."""
HELD_BYTES = 384
"""What a thread of a chain's kernel may hold of tensors that it encodes: with 512, one took 237 registers."""
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True, slots=True)
class Shares:
    """How much one thread does.

    Attributes:
        encode: elements of one group, at most; all of them share the cost of the metadata.
        decode: elements in all; the more, the fewer addresses per element.
    """

    encode: int
    decode: int = 16


def shares_of(codec: Affine) -> Shares:
    """The fastest on an H200 for 2, 4 and 8 bits of bf16 (`bench.device`, section `tune`), but for 2 bits in groups of
    64: there 32 elements per thread are 3 % faster and take more than 12 instructions each, for which other cards have
    less time."""
    return Shares(encode=64 if codec.bits < 4 else 32)


def refuse(codec: Affine, cols: int, dtype: torch.dtype) -> str:
    """Why the kernels cannot do what `codec` does, or empty."""
    if dtype not in DTYPES:
        return f"the affine kernels take fp32, bf16 and fp16, not {dtype}"
    if codec.heads:
        return "the affine kernels take groups that are contiguous, not heads"
    if not lanes(codec.bits, codec.group, RUN):
        return f"the affine kernels take groups of a power of two from {max(16, 64 // codec.bits)} to 2048"
    return ""


def encode(codec: Affine, x: torch.Tensor, salt: int, *, shares: Shares | None = None) -> Launch:
    """`[*lead, cols]` → (codes, word)."""
    x = x.contiguous()
    *lead, cols = x.shape
    codes, word = (x.new_empty((*lead, *field.shape), dtype=field.dtype) for field in codec.fields(cols, x.dtype))
    aligned = cols % RUN == 0 and statically_known_true(x.storage_offset() * x.itemsize % 16 == 0)
    constants = encode_constants(codec, cols % codec.group != 0, aligned, shares)
    return Launch(
        kernel=kernel.encode,
        programs=_programs(word.numel(), constants),
        inputs={"x_ptr": x},
        outputs={"codes_ptr": codes, "word_ptr": word},
        numbers={"n_groups": word.numel(), "cols": cols, "salt": signed(salt)},
        constants=constants,
    )


def refuse_together(codecs: Sequence[Affine], cols: int, dtype: torch.dtype) -> str:
    """Why one kernel cannot encode rows of `cols` elements with each of `codecs`, or empty."""
    if reason := next(filter(None, (refuse(codec, cols, dtype) for codec in codecs)), ""):
        return reason
    if len({codec.group for codec in codecs}) > 1:
        return "one kernel has groups of one size"
    held = _group_of_chain(codecs) // _lanes_of_chain(codecs) * len(codecs) * dtype.itemsize
    return "" if held <= HELD_BYTES else f"a thread would hold {held} bytes of what it encodes"


def packs_masks(codecs: Sequence[Affine], cols: int) -> bool:
    """Whether the threads of a chain's kernel hold 32 elements each, so that each has one word of bits."""
    group, shared = _group_of_chain(codecs), _lanes_of_chain(codecs)
    return cols % group == 0 and group % 64 == 0 and shared * 32 == group and shared <= 8


def fills_tiles(codecs: Sequence[Affine], cols: int) -> bool:
    """Whether no element is read twice; what is past the end of a tile is the last group again."""
    return cols % (WARPS * 32 // _lanes_of_chain(codecs) * _group_of_chain(codecs)) == 0


def encode_chain(
    chain: Chain, codecs: Sequence[Affine], rows: Sequence[torch.Tensor], dtypes: Sequence[torch.dtype]
) -> Launch:
    """Inputs of a chain, `[cols]` each or shorter if repeated → its stored values, `[cols]` of its dtype each, (codes,
    word) per encode, and the bits of each mask.

    Outputs carry the kernel's names, salts are 0. Stored values that may lie over an input do, where tiles are full.
    """
    rows = [x.contiguous() for x in rows]
    given = dict(zip(chain.inputs, rows, strict=True))
    cols = max(x.numel() for x in rows)
    payloads = {
        f"{field.name}{k}_ptr": rows[0].new_empty(field.shape, dtype=field.dtype)
        for k, codec in enumerate(codecs)
        for field in codec.fields(cols, rows[0].dtype)
    }
    masks = {f"{name}_ptr": rows[0].new_empty((cols // 64, 8), dtype=torch.uint8) for name in chain.masks}
    groups = -(-cols // _group_of_chain(codecs))
    aligned = all(statically_known_true(x.storage_offset() * x.itemsize % 16 == 0) for x in rows)
    constants = chain_constants(codecs, cols % _group_of_chain(codecs) != 0, cols % RUN == 0 and aligned)
    over = {name: given[source] for name, source in chain.over} if aligned and fills_tiles(codecs, cols) else {}
    stored = {
        f"{name}_ptr": over[name] if name in over else rows[0].new_empty(cols, dtype=dtype)
        for name, dtype in zip(chain.stored, dtypes, strict=True)
    }
    return Launch(
        kernel=chain_kernel.jit(chain_kernel.write_source(chain)),
        programs=_programs(groups, constants),
        inputs={f"{name}_ptr": x for name, x in given.items()},
        outputs={**stored, **payloads, **masks},
        numbers={"n_groups": groups, "cols": cols, **{f"salt{k}": 0 for k in range(len(codecs))}},
        constants=constants | {f"PERIOD_{name}": given[name].numel() for name in chain.repeated},
    )


def decode(
    codec: Affine, parts: tuple[torch.Tensor, ...], cols: int, dtype: torch.dtype, *, shares: Shares | None = None
) -> Launch:
    """(codes, word) → `[*lead, cols]` of `dtype`."""
    codes, word = (part.contiguous() for part in parts)
    y = codes.new_empty((*word.shape[:-1], cols), dtype=dtype)
    constants = decode_constants(codec, cols % codec.group != 0, cols % RUN == 0, shares)
    return Launch(
        kernel=decode_kernel.decode,
        programs=_programs(word.numel(), constants),
        inputs={"codes_ptr": codes, "word_ptr": word},
        outputs={"y_ptr": y},
        numbers={"n_groups": word.numel(), "cols": cols},
        constants=constants,
    )


def encode_constants(codec: Affine, ragged: bool, vector: bool, shares: Shares | None = None) -> dict[str, object]:
    """Compile-time parameters of the encode kernel."""
    shared = lanes(codec.bits, codec.group, (shares or shares_of(codec)).encode)
    return {
        **_constants(codec, ragged, vector),
        "STOCHASTIC": codec.rounding == "stochastic",
        "RECIPROCAL": reciprocal(codec.steps),
        "LANES": shared,
        "TILE": WARPS * 32 // shared,
    }


def chain_constants(codecs: Sequence[Affine], ragged: bool, vector: bool) -> dict[str, object]:
    """Compile-time parameters of a kernel that computes and encodes.

    A thread has 32 elements of a group at most, so that in groups of 64 two of them fill the 32 bytes of a sector.
    """
    shared = _lanes_of_chain(codecs)
    own = [encode_constants(codec, ragged, vector) for codec in codecs]
    return {
        **{f"{name}{k}": constants[name] for k, constants in enumerate(own) for name in chain_kernel.PER_CODEC},
        "VECTOR": vector,
        "RAGGED": ragged,
        "GROUP": _group_of_chain(codecs),
        "LANES": shared,
        "TILE": WARPS * 32 // shared,
    }


def _group_of_chain(codecs: Sequence[Affine]) -> int:
    """Elements of a group; any number does where nothing is quantized."""
    return codecs[0].group if codecs else 128


def _lanes_of_chain(codecs: Sequence[Affine]) -> int:
    return min((lanes(codec.bits, codec.group, 32) for codec in codecs), default=_group_of_chain(codecs) // 32)


def decode_constants(codec: Affine, ragged: bool, vector: bool, shares: Shares | None = None) -> dict[str, object]:
    """Compile-time parameters of the decode kernel."""
    tile = max(1, WARPS * 32 * (shares or shares_of(codec)).decode // codec.group)
    return {**_constants(codec, ragged, vector), "TILE": tile, "THREADS": WARPS * 32}


def _constants(codec: Affine, ragged: bool, vector: bool) -> dict[str, object]:
    return {
        "BITS": codec.bits,
        "GROUP": codec.group,
        "KEEPS": _kept(codec),
        "VECTOR": vector,
        "RAGGED": ragged,
    }


def _kept(codec: Affine) -> int:
    if codec.sign_preserving:
        return int(kernel.SIGNS.value)
    return int(kernel.ZEROS.value) if codec.zero_preserving else 0


def _programs(groups: int, constants: dict[str, object]) -> int:
    if isinstance(groups, int) and groups >= 2**31:
        raise OptionError(f"affine: {groups} groups in one tensor; the kernels count them in 31 bits")
    tile = int(str(constants["TILE"]))
    return (groups + tile - 1) // tile
