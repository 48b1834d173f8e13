"""Pick the lossy codec for one saved tensor: by the option `codec`, its need class and how it lies in memory.

A codec that the option names is taken where it fits; elsewhere `affine` is, and the reason says why.
"""

import torch
from torch import fx

from fxcompress import codecs
from fxcompress.codecs.base import Codec
from fxcompress.codecs.bounded.live import UNSET
from fxcompress.codecs.order import MemoryOrder
from fxcompress.facts import Need
from fxcompress.options import Options
from fxcompress.passes.find_saved import layer_of
from fxcompress.passes.follow import follow
from fxcompress.passes.ops import SIGNED, is_attention, is_view
from fxcompress.passes.row_groups import row_group

SMALLEST_MAP = 16
"""Elements of a plane below which metadata would outweigh codes."""
ATTENTION_BITS = 8
"""Fewest for what attention reads (decision 1)."""
_FLOORS: dict[Need, int] = {"attention": ATTENTION_BITS, "logits": 8, "operand+mask": 2}
_NO_ZEROS = frozenset({"bounded", "dual"})
"""Codecs that do not keep the zero pattern of a tensor, so that it is saved as a mask."""
_MAPS = frozenset({"block2d", "dual"})
_MOST_BITS = {"dual": 4}


def keeps_zeros(options: Options) -> bool:
    """Whether tensors stored under these options answer for their own zeros."""
    return options.codec not in _NO_ZEROS


def pick_codec(need: Need, options: Options, source: fx.Node | None, order: MemoryOrder | None) -> tuple[Codec, str]:
    """The codec for a tensor of need class `need`, and why it is not the one that the options name, if so.

    Args:
        need: a class that lossy codecs may serve.
        options: codec, widths, rounding.
        source: what is to be stored, a forward node; None if only the class is known.
        order: how it lies in memory; None if it is not dense.
    """
    signed = source is not None and SIGNED in source.meta
    least = max(_FLOORS.get(need, 1), 2 if signed else 1)
    bits = max(options.bits if need == "derivative" else options.operand_bits, least)
    rounding = ("nearest" if bits == 8 else "stochastic") if options.rounding == "auto" else options.rounding
    zeros = need.endswith("+mask")
    sizes = _map_of(source, order) if options.codec in _MAPS else None
    why_not = _unfit(options.codec, need, bits, sizes)
    size = (options.group if isinstance(options.group, int) else 0) or row_group(source, order)
    if options.codec == "bounded" and not why_not:
        return _bounded(bits, size, options, source), ""
    if options.codec == "float8" and not why_not:
        return codecs.make("float8", **({"group": size} if size else {})), ""
    keeps = {"zero_preserving": True} if zeros else {"sign_preserving": True} if signed else {}
    common = {"bits": bits, "rounding": rounding, **keeps}
    if isinstance(sizes, tuple) and not why_not:
        height, width, inner = sizes
        return codecs.make(options.codec, height=height, width=width, inner=inner, **common), ""
    if options.group == "head" and need == "attention" and source is not None and (heads := _heads_of(source, order)):
        if options.stats == "ema":
            return codecs.make("running", heads=heads[0], dim=heads[1], key=_key_of(source), **common), ""
        return codecs.make("affine", heads=heads[0], dim=heads[1], **common), ""
    return codecs.make("affine", group=size, **common), f"affine: {why_not}" if why_not else ""


def _bounded(bits: int, size: int, options: Options, source: fx.Node | None) -> Codec:
    """Codes within the stated bound, or within one that is set by name between steps."""
    group = {"group": size} if size else {}
    if not options.adaptive or source is None:
        return codecs.make("bounded", bits=max(bits, 2), eps=options.error_bound, relative=True, **group)
    # Until a bound is set, as near as the rate allows.
    return codecs.make("bounded", bits=max(bits, 2), eps=UNSET, key=_key_of(source), **group)


def _key_of(source: fx.Node) -> str:
    """Names a tensor for what is kept about it from step to step."""
    return f"{layer_of(source)}/{source.name}"


def _unfit(codec: str, need: Need, bits: int, sizes: tuple[int, int, int] | str | None) -> str:
    """Why `codec` cannot store the tensor; empty if it can, or if it is affine, which always can."""
    if need.endswith("+mask") and codec in ("float8", *_NO_ZEROS):
        return f"{codec} does not keep the zero pattern"
    if codec in _MAPS and need in ("attention", "logits"):
        return f"{codec} stores maps and sequences, not {need}"
    if bits > _MOST_BITS.get(codec, 8):
        return f"{codec} stores at most {_MOST_BITS[codec]} bits"
    return sizes if isinstance(sizes, str) else ""


def _map_of(source: fx.Node | None, order: MemoryOrder | None) -> tuple[int, int, int] | str:
    """Height, width and inner size of the maps that a tensor consists of, or why it has none.

    Four dimensions are images `[N, C, H, W]`, contiguous or channels_last; three are tokens `[N, T, C]`, of which the
    channels or the tokens are contiguous; two are tokens if the graph views them so.
    """
    if source is None or order is None:
        return "layout unknown"
    val, tail = source.meta["val"], order.tail
    sizes: tuple[int, int, int] | None = None
    match val.dim(), order.dims:
        case 4, (0, 1, 2, 3) if len(tail) >= 2:
            sizes = (tail[-2], tail[-1], 1)
        case 4, (0, 2, 3, 1) if len(tail) >= 3:
            sizes = (tail[-3], tail[-2], tail[-1])
        case 3, (0, 1, 2) if len(tail) >= 2:
            sizes = (tail[-2], 1, tail[-1])
        case 3, (0, 2, 1) if len(tail) >= 1:
            sizes = (tail[-1], 1, 1)
        case 2, (0, 1) if len(tail) == 2 and (tokens := _tokens(source)):
            sizes = (tokens, 1, tail[-1])
    if sizes is None:
        return f"neither a map nor a sequence of static size in memory order {order.dims}"
    height, width, _ = sizes
    if height * width < SMALLEST_MAP:
        return f"a plane of {height} x {width} is smaller than {SMALLEST_MAP} elements"
    return sizes


def _heads_of(source: fx.Node, order: MemoryOrder | None) -> tuple[int, int] | None:
    """Heads in a row, and contiguous elements of each, as a fused attention kernel reads them; None if none does.

    A kernel's operand is `[N, heads, T, D]`. Where tokens hold all heads (strides …, D, period, 1), as behind one
    projection to q, k and v, each of the three counts as heads of its own.
    """
    for view in follow([source], lambda view: filter(is_view, view.users)):
        val = view.meta.get("val")
        touched = any(map(is_attention, (*view.users, *view.all_input_nodes)))
        if touched and isinstance(val, torch.Tensor) and val.dim() == 4 and val.stride(-1) == 1:
            return _heads(val, order)
    return None


def _heads(val: torch.Tensor, order: MemoryOrder | None) -> tuple[int, int] | None:
    heads, tokens, width = val.shape[1:]
    period = val.stride(2)
    count, dim = (heads, tokens * width) if period == width else (period // width, width)
    if order is None or not isinstance(count, int) or not isinstance(dim, int) or order.cols % (count * dim):
        return None
    return count, dim


def _tokens(source: fx.Node) -> int:
    """How many rows of a matrix are one sequence, if it is used as `[N, T, C]` somewhere; else 0."""
    width = source.meta["val"].shape[-1]
    for user in source.users:
        val = user.meta.get("val")
        if is_view(user) and isinstance(val, torch.Tensor) and val.dim() == 3 and val.shape[-1] == width:
            return val.shape[1] if isinstance(val.shape[1], int) else 0
    return 0
