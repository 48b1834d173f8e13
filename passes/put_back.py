"""Put what the chunks of a region gave in the place of the region's results.

Pieces per token are joined, sums get the shape and dtype of what they replace, and gradients, computed for a tangent of
one, are multiplied by the tangent behind where they are saved. A small tied weight's is rounded last (`add_unrounded`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import fx

from fxcompress.passes.add_unrounded import add_unrounded, find_sum
from fxcompress.passes.alias import hint
from fxcompress.passes.find_saved import DESCRIPTIVE
from fxcompress.passes.follow import follow
from fxcompress.passes.loss_region import Region
from fxcompress.passes.ops import GRADIENT
from fxcompress.passes.token_rows import Unchunkable, same, shape_of
from fxcompress.passes.write_chunk import PREFIX, Writer

aten = torch.ops.aten


@dataclass(frozen=True, slots=True)
class Results:
    """What the chunks gave: pieces per token in order, and sums."""

    pieces: dict[fx.Node, list[fx.Node]]
    sums: dict[fx.Node, fx.Node]


def put_back(write: Writer, region: Region, results: Results) -> list[fx.Node]:
    """Let all readers of the region read `results`; returns the gradients for a tangent of one, to save."""
    final = {node: _joined(write, region, node, pieces) for node, pieces in results.pieces.items()}
    final |= {node: _reshaped(write, node, total) for node, total in results.sums.items()}
    saved = []
    for node, value in final.items():
        if node in region.gradient:
            saved.append(_put_gradient(write, region, node, value, results))
        else:
            _put(region, node, _converted(write, node, value))
    return saved


def _joined(write: Writer, region: Region, node: fx.Node, pieces: Sequence[fx.Node]) -> fx.Node:
    """The per-token value `node` from its pieces."""
    rows, shape = region.rows[node], shape_of(node)
    value = write(aten.cat.default, list(pieces), rows.first)
    cut = region.cut
    if cut is not None and not rows.cut:
        # Only gradients get here: tokens that the loss leaves out have none.
        whole = [*shape[: rows.first], *cut.sizes, *shape[rows.last :]]
        kept = [*cut.sizes]
        kept[cut.place] = len(range(*slice(cut.start, cut.end).indices(_static(cut.sizes[cut.place]))))
        dim = rows.first + cut.place
        value = write(aten.reshape.default, value, write.sizes([*shape[: rows.first], *kept, *shape[rows.last :]]))
        val = value.meta["val"]
        zeros = write(aten.full.default, write.sizes(whole), 0.0, dtype=val.dtype, device=val.device)
        value = write(aten.slice_scatter.default, zeros, value, dim, cut.start, cut.end)
    return _reshaped(write, node, value)


def _static(size: int | torch.SymInt) -> int:
    if not isinstance(size, int):
        raise Unchunkable("a slice leaves a symbolic number of tokens")
    return size


def _put_gradient(write: Writer, region: Region, node: fx.Node, value: fx.Node, results: Results) -> fx.Node:
    """Let readers of `node` have `value`, its gradient for a tangent of one, times the tangent; returns it."""
    total = find_sum(node) if _is_worth_fp32(region, node, value) else None
    value = value if total is not None else _converted(write, node, value)
    _describe(value, node)
    _mark(value, {*results.pieces.get(node, ()), *results.sums.values()})
    tangent = region.tangent
    factor = tangent if tangent.meta["val"].dim() == 0 else write(aten.reshape.default, tangent, [])
    scaled = write(aten.mul.Tensor, value, factor)
    if total is not None:
        add_unrounded(write, node, scaled, total)
    else:
        _put(region, node, _converted(write, node, scaled))
    return value


def _is_worth_fp32(region: Region, node: fx.Node, value: fx.Node) -> bool:
    """Whether `value` has more bits than `node`, and they take no more memory than the hidden states beside it."""
    tokens, words = map(hint, region.shape)
    return value.meta["val"].dtype is not node.meta["val"].dtype and words <= tokens


def _put(region: Region, node: fx.Node, value: fx.Node) -> None:
    """Let all readers of `node` outside the region read `value`."""
    _describe(value, node)
    members = set(region.members)
    node.replace_all_uses_with(value, delete_user_cb=lambda user: user not in members)


def _describe(value: fx.Node, node: fx.Node) -> None:
    value.meta |= {key: node.meta[key] for key in DESCRIPTIVE if key in node.meta}


def _reshaped(write: Writer, node: fx.Node, value: fx.Node) -> fx.Node:
    """A result in the shape of the node that it replaces."""
    shape = node.meta["val"].shape
    return value if same(shape_of(value), shape) else write(aten.reshape.default, value, write.sizes(shape))


def _converted(write: Writer, node: fx.Node, value: fx.Node) -> fx.Node:
    """A result in the dtype of the node that it replaces."""
    dtype = node.meta["val"].dtype
    same_dtype = value.meta["val"].dtype is dtype
    return value if same_dtype else write(torch.ops.prims.convert_element_type.default, value, dtype)


def _mark(value: fx.Node, parts: set[fx.Node]) -> None:
    """Mark a gradient, and what it is put together from."""

    def further(node: fx.Node) -> list[fx.Node]:
        return [] if node in parts else [arg for arg in node.all_input_nodes if arg.name.startswith(PREFIX)]

    for node in follow([value], further):
        node.meta["actcomp"] = GRADIENT
