"""The record of each saved tensor, against the executed values it describes."""

import dataclasses
import json

import pytest
import torch
from hypothesis import given, settings

from fxcompress.facts import CALLER_HELD, SavedTensor, saved_bytes
from fxcompress.passes.alias import find_storages
from fxcompress.passes.collect import NO_CHECK, collect, refusal
from fxcompress.passes.demand import find_demands
from fxcompress.passes.find_masked import find_masked
from fxcompress.passes.find_saved import find_saved
from fxcompress.passes.values import find_values
from fxcompress.testing_graphs import Pair, capture, run, storages
from fxcompress.testing_programs import Program, programs

SEARCH = settings(deadline=None, max_examples=8, derandomize=True)


def collected(pair: Pair, min_bytes: int = 64) -> tuple[SavedTensor, ...]:
    pairs = find_saved(pair.fw, pair.bw, num_fwd_outputs=pair.num_fwd_outputs)
    grouped, values = find_storages(pair.fw, pairs, pair.num_fwd_outputs), find_values(pair.fw)
    demands = find_demands(pair.bw, pairs, values)
    return collect(grouped, demands, values, find_masked(pair.fw), min_bytes)


@SEARCH
@given(programs())
def test_records_describe_the_saved_values(program: Program) -> None:
    pair = capture(program, program.inputs(), program.partition)
    found, ran = collected(pair), run(pair)
    assert [tensor.index for tensor in found] == sorted({tensor.index for tensor in found})
    assert len(found) == len(ran.saved)
    for tensor, value in zip(found, ran.saved, strict=True):
        assert (tensor.shape, tensor.stride) == (tuple(value.shape), value.stride())
        assert tensor.dtype == str(value.dtype).removeprefix("torch.")
        assert tensor.nbytes == value.numel() * value.element_size()
        assert tensor.storage_nbytes == value.untyped_storage().nbytes()
    held = {**storages(pair.inputs), **storages(ran.outputs)}
    assert saved_bytes(found) == sum(size for key, size in storages(ran.saved).items() if key not in held)
    assert collected(pair) == found


@SEARCH
@given(programs(max_steps=4))
def test_records_are_plain_data(program: Program) -> None:
    found = collected(capture(program, program.inputs(), program.partition))
    assert json.loads(json.dumps([dataclasses.asdict(tensor) for tensor in found]))


def pair_of(size: int = 16) -> Pair:
    x, w = (torch.randn(size, size, requires_grad=True) for _ in range(2))
    return capture(lambda x, w: [torch.tanh(x @ w), (x @ w).sin()], (x, w))


@pytest.mark.parametrize("floor, refused", [(0, False), (1024, False), (1025, True)])
def test_the_floor_counts_whole_storages(floor: int, refused: bool) -> None:
    (mm,) = [tensor for tensor in collected(pair_of(), floor) if tensor.op == "aten.mm"]
    assert bool(mm.refusal) == refused and (not refused or mm.refusal == f"smaller than min_bytes={floor}")


def test_what_the_caller_holds_is_refused_first() -> None:
    refusals = {tensor.op: tensor.refusal for tensor in collected(pair_of(), 1 << 30)}
    assert refusals["placeholder"] == CALLER_HELD[0] and refusals["aten.detach"] == CALLER_HELD[1]
    assert refusals["aten.mm"].startswith("smaller than")


def refusal_of(function, *inputs: torch.Tensor, mark=lambda saved, storage: None, masked: bool = False) -> str:
    """Why the first saved tensor that nobody holds is left alone."""
    pair = capture(function, inputs, "default")
    pairs = find_saved(pair.fw, pair.bw, num_fwd_outputs=pair.num_fwd_outputs)
    free = [storage for storage in find_storages(pair.fw, pairs, pair.num_fwd_outputs) if not storage.held_by]
    mark(free[0].members[0], free[0])
    return refusal(free[0].members[0], free[0], {free[0].root} if masked else set(), 64)


def test_what_no_codec_takes_is_refused() -> None:
    z = torch.randn(8, 8, dtype=torch.complex64, requires_grad=True)
    assert refusal_of(lambda z: (z * 2) @ (z * 3), z) == "strided complex64: no codec takes it"


def test_masked_floats_are_refused_and_masked_indices_are_not() -> None:
    x, index = torch.randn(16, 16, requires_grad=True), torch.randint(0, 16, (16, 16))
    assert refusal_of(lambda x: (x * 2).sin(), x, masked=True).startswith("masked")
    assert refusal_of(lambda x, i: x.sin().gather(1, i * 1) * 1, x.detach().requires_grad_(), index, masked=False) == ""


def test_what_is_saved_without_a_version_check_is_refused() -> None:
    def mark(saved, storage) -> None:
        saved.fw.meta[NO_CHECK] = True

    x = torch.randn(16, 16, requires_grad=True)
    assert refusal_of(lambda x: (x * 2).sin(), x, mark=mark) == "saved without a version check"


def test_symbolic_sizes_are_texts_and_count_by_their_hint() -> None:
    x = torch.randn(20, 16, requires_grad=True)
    pair = capture(lambda x: (x.sin() * 2).exp().sum(0), (x,), dynamic=True)
    whole = [tensor for tensor in collected(pair) if len(tensor.shape) == 2]
    assert whole and all(isinstance(size, str) for tensor in whole for size in tensor.shape)
    assert {tensor.nbytes for tensor in whole} == {20 * 16 * 4}


def test_layers_and_lines_are_named() -> None:
    (mm,) = [tensor for tensor in collected(pair_of()) if tensor.op == "aten.mm"]
    assert mm.source == "" or mm.source.startswith("test_collect.py:")
    assert mm.consumers and all(isinstance(consumer, str) for consumer in mm.consumers)
