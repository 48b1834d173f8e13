"""Put the findings on each saved tensor into one torch-free record (`facts.SavedTensor`)."""

from collections.abc import Mapping

import torch
from torch import fx

from fxcompress.facts import CALLER_HELD, SavedTensor, Size
from fxcompress.passes.alias import Storage, nbytes_of
from fxcompress.passes.demand import Demand
from fxcompress.passes.find_saved import SavedPair, layer_of, source_of
from fxcompress.passes.ops import GRADIENT, full_name
from fxcompress.passes.values import Known

NO_CHECK = "saved_tensor_with_no_vc_check"


def collect(
    storages: list[Storage], demands: Mapping[fx.Node, Demand], values: Known, masked: set[fx.Node], min_bytes: int
) -> tuple[SavedTensor, ...]:
    """Describe every saved tensor, in the order in which the forward graph returns them."""
    found = [
        (pair, _describe(pair, storage, demands[pair.bw], values, masked, min_bytes))
        for storage in storages
        for pair in storage.members
    ]
    return tuple(tensor for _, tensor in sorted(found, key=lambda item: item[0].position))


def refusal(pair: SavedPair, storage: Storage, masked: set[fx.Node], min_bytes: int) -> str:
    """Why a tensor is left alone whatever its values; empty if it may be encoded."""
    val = pair.val
    if storage.held_by == "input":
        return CALLER_HELD[0]
    if storage.held_by == "output":
        return CALLER_HELD[1]
    if val.layout is not torch.strided or val.dtype.is_complex or val.is_quantized:
        return f"{str(val.layout).removeprefix('torch.')} {_dtype(val)}: no codec takes it"
    if pair.fw.meta.get("actcomp") == GRADIENT:
        return "a gradient already, which no error may enter"
    if pair.fw.meta.get(NO_CHECK):
        return "saved without a version check"
    if val.dtype.is_floating_point and (pair.fw in masked or storage.root in masked):
        return "masked: holds infinite or extreme entries by construction"
    if storage.nbytes < min_bytes:
        return f"smaller than min_bytes={min_bytes}"
    return ""


def _describe(
    pair: SavedPair, storage: Storage, demand: Demand, values: Known, masked: set[fx.Node], min_bytes: int
) -> SavedTensor:
    val = pair.val
    known = values.get(pair.fw)
    return SavedTensor(
        index=pair.position,
        name=pair.bw.name,
        storage=storage.root.name,
        layer=layer_of(pair.fw),
        source=source_of(pair.fw),
        op=full_name(pair.fw),
        shape=_sizes(val.shape),
        stride=_sizes(val.stride()) if val.layout is torch.strided else (),
        dtype=_dtype(val),
        nbytes=nbytes_of(val) if val.layout is torch.strided else 0,
        storage_nbytes=storage.nbytes,
        need=demand.need,
        consumers=demand.consumers,
        values=str(known) if known else "",
        refusal=refusal(pair, storage, masked, min_bytes),
    )


def _sizes(sizes: tuple[int | torch.SymInt, ...]) -> tuple[Size, ...]:
    return tuple(size if isinstance(size, int) else str(size) for size in sizes)


def _dtype(val: torch.Tensor) -> str:
    return str(val.dtype).removeprefix("torch.")
