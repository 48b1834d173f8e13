"""Split loops and counted instructions, against enumeration and against code that is known."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sympy
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

pytest.importorskip("triton")

from bench.compat.fake_cuda import compile_generated, fake_cuda, lower, numels
from bench.issue import WARP, Code, count_code, find_loops, measure, table
from bench.kernel_bytes import kernel_sources
from bench.models.blocks import default_dtype
from bench.sass import Line, disassemble
from bench.step_graphs import Joint, partition, plain, trace
from bench.traffic import INLINED
from fxcompress.compat import split_loops
from fxcompress.inductor_settings import settings as inductor_settings
from fxcompress.options import Options
from fxcompress.partition import ActcompPartitioner

CHANNELS = 256
LAST = torch.channels_last


def norms(channels: int = CHANNELS) -> Joint:
    """Two convolutions with batch norm, channels last, in bf16."""
    with FakeTensorMode():
        with default_dtype(torch.bfloat16):
            layers = [layer for _ in range(2) for layer in _layers(channels)]
            x = torch.empty(8, channels, 8, 8, requires_grad=True).contiguous(memory_format=LAST)
        return trace(nn.Sequential(*layers).train(), (x,))


def _layers(channels: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(channels, channels, 1), nn.BatchNorm2d(channels), nn.ReLU()


def backward_sources(joint: Joint, *left_out: str) -> dict[str, str]:
    """The generated kernels of a backward at 4 bits."""
    options = Options(operand_bits=4, disable_passes=(*INLINED, *left_out))
    _, bw = partition(joint, ActcompPartitioner(options))
    with fake_cuda():
        return kernel_sources(lower(bw, is_backward=True, settings=inductor_settings(options, on_gpu=True)).source)


def counts(sources: dict[str, str], folder: Path, part: str) -> Iterator[Code]:
    """Of the kernels whose name contains `part`, in their first configuration."""
    with fake_cuda():
        for name, source in sources.items():
            if part in name:
                yield count_code(next(compile_generated(source, folder)), source)


def values(index: Any, ranges: dict[Any, Any]) -> Any:
    """An index at every point of its loops, in their order."""
    quotient: dict[str, Any] = {"FloorDiv": np.floor_divide, "ModularIndexing": lambda x, by, size: x // by % size}
    grid = np.indices([int(size) for size in ranges.values()]).reshape(len(ranges), -1)
    found = sympy.lambdify(list(ranges), index, modules=[quotient, "numpy"])(*grid)
    return np.broadcast_to(found, grid.shape[1:])


def test_split_loops_touch_the_same_elements_in_the_same_order(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs: list[tuple[Any, Any]] = []
    original = split_loops.split_body

    def recording(body: Any) -> Any:
        split = original(body)
        pairs.append((body, split))
        return split

    monkeypatch.setattr(split_loops, "split_body", recording)
    for channels in (64, CHANNELS):
        backward_sources(norms(channels))
    changed = [(old, new) for old, new in pairs if new is not old]
    assert changed
    for old, new in changed:
        assert new.indexing_exprs.keys() == old.indexing_exprs.keys()
        for name, index in old.indexing_exprs.items():
            assert np.array_equal(values(index, old.var_ranges), values(new.indexing_exprs[name], new.var_ranges))


@pytest.mark.slow
def test_a_decode_in_a_derivative_takes_half_the_instructions_and_wide_loads(tmp_path: Path) -> None:
    joint, part = norms(), "poi_fused__native_batch_norm_legit_functional"
    ours = list(counts(backward_sources(joint), tmp_path, part))
    without = list(counts(backward_sources(joint, "split_loops"), tmp_path, part))
    assert len(ours) == len(without) > 0
    assert min(code.load_bits for code in ours) >= 32 and min(code.load_bits for code in without) == 8
    assert sum(code.issued for code in ours) < 0.55 * sum(code.issued for code in without)


class Sum(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sum(-1)


def test_code_counts_by_programs_and_rounds(tmp_path: Path) -> None:
    """The loop loads all elements once, whatever ptxas unrolls; twice the rows are twice the programs."""
    rows, cols = 512, 1_048_576
    with FakeTensorMode():
        joint = trace(Sum(), (torch.empty(rows, cols, requires_grad=True),))
    with fake_cuda():
        lowered = lower(partition(joint, plain)[0], is_backward=False, user_outputs=[0])
        source = next(source for source in kernel_sources(lowered.source).values() if "r0_numel" in source)
        made = next(compile_generated(source, tmp_path))
    assert numels(source) == {"x": rows, "r0_": cols} and len(find_loops(disassemble(made.cubin))) == 1
    once, wider = (count_code(made, re.sub(r"xnumel = \d+", f"xnumel = {x}", source)) for x in (rows, 2 * rows))
    assert once.load_bits == 128
    assert once.pipes["memory"] * WARP * 16 == pytest.approx(rows * cols * 4, rel=0.05)
    assert wider.issued == 2 * once.issued


def test_loops_are_backward_jumps() -> None:
    opcodes = [
        ("MOV", "", ""),
        ("LDG.E", ".L_x_1", ""),
        ("BRA", "", ".L_x_1"),
        ("EXIT", "", ""),
        ("BRA", ".L_x_9", ".L_x_9"),
    ]
    assert find_loops([Line(*line) for line in opcodes]) == [(1, 2)]


@pytest.mark.slow
def test_a_step_is_the_sum_of_its_launches() -> None:
    first, *rows = measure("norms", "plain", norms(64))
    assert first.kernel == "all" and first.launches == sum(row.launches for row in rows) > 3
    assert first.bound_s == pytest.approx(sum(max(row.memory_s, row.issue_s) for row in rows))
    assert first.issued == pytest.approx(sum(first.pipes.values()))
    assert all(4 < WARP * row.issued / row.elements < 500 for row in rows)
    assert table([first, *rows], 2).row_count == 3
