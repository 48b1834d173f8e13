"""Counted bytes and launches against graphs whose answer is known in closed form."""

import ast
import importlib.util
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

pytest.importorskip("triton")

import fxcompress
from bench import traffic
from bench.compat.fake_cuda import Access, fake_cuda, gpu_layouts, lower
from bench.kernel_bytes import Kernel, count_kernels, count_passes, kernel_sources, merged_bytes, split_arguments
from bench.models.blocks import BLOCKS, default_dtype
from bench.sass import compile_kernel
from bench.step_graphs import Joint, Partitioner, partition, plain, saved_nbytes, trace
from bench.traffic import INLINED, Row, count_encoded, lower_pair, measure, phase, table, variants, why_table
from bench.traffic_parts import Step, compare
from fxcompress import compat
from fxcompress.codecs.affine import Affine
from fxcompress.codecs.base import Codec, payload_nbytes
from fxcompress.codecs.valueset import Valueset
from fxcompress.options import Options
from fxcompress.partition import ActcompPartitioner
from fxcompress.plan import FUSED, TRITON

ROWS, WIDTH = 512, 1024
UNFUSED = (*INLINED, "fuse")
BF16, FP32 = 2, 4


class Pointwise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x.sin() + 1).cos()


class RowSum(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sum(-1)


class GeluLinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, 2 * WIDTH, bias=False, dtype=torch.bfloat16)

    def forward(self, x: Tensor) -> Tensor:
        return torch.nn.functional.gelu(self.linear(x))


def step_kernels(
    module: Callable[[], nn.Module], *, variant: Callable[..., object] = plain
) -> tuple[tuple[Kernel, ...], tuple[Kernel, ...]]:
    """Forward and backward kernels of a module of one bf16 `[ROWS, WIDTH]` argument."""
    with FakeTensorMode():
        joint = trace(module(), [torch.empty(ROWS, WIDTH, dtype=torch.bfloat16, requires_grad=True)])
    step = lower_pair(partition(joint, variant), joint.num_fwd_outputs)
    return step.forward, step.backward


def function_kernels(function: Callable[..., object], *inputs: Tensor) -> list[Kernel]:
    """Kernels of a function of fake tensors."""
    with gpu_layouts():
        gm = make_fx(function, decomposition_table=compat.inductor_decompositions())(*inputs)
    gm.graph.eliminate_dead_code()
    with fake_cuda():
        return count_kernels(lower(gm, is_backward=False))


def test_pointwise_chain_reads_and_writes_each_tensor_once() -> None:
    forward, backward = step_kernels(Pointwise)
    tensor = ROWS * WIDTH * BF16
    assert [(k.library, k.nbytes) for k in forward] == [(False, 2 * tensor)]
    assert [(k.library, k.nbytes) for k in backward] == [(False, 3 * tensor)]


def test_reduction_reads_all_and_writes_rows() -> None:
    forward, backward = step_kernels(RowSum)
    tensor, rows = ROWS * WIDTH * BF16, ROWS * BF16
    assert [k.nbytes for k in forward] == [tensor + rows]
    # The gradient is one value per row, expanded: a view where it is an output.
    assert sum(k.nbytes for k in backward) in (0, rows + tensor)


def test_linear_and_gelu_count_operands_and_results_of_products() -> None:
    forward, backward = step_kernels(GeluLinear)
    x, weight, hidden = ROWS * WIDTH * BF16, 2 * WIDTH * WIDTH * BF16, 2 * ROWS * WIDTH * BF16
    assert [(k.library, k.nbytes) for k in forward] == [(True, x + weight + hidden), (False, 2 * hidden)]
    assert sorted((k.library, k.nbytes) for k in backward) == sorted(
        [(False, 3 * hidden), (True, hidden + x + weight), (True, hidden + weight + x)]
    )


def test_a_slice_costs_what_it_holds_and_an_expanded_operand_what_it_stores() -> None:
    with FakeTensorMode():
        x = torch.empty(ROWS, 4 * WIDTH)
        kernels = function_kernels(lambda x: x[:, WIDTH : 2 * WIDTH] + x[0, 0], x)
    (kernel,) = kernels
    assert sum(kernel.writes.values()) == ROWS * WIDTH * FP32
    # Rows lie apart, so the one element that is read by all may or may not be among them.
    assert sum(kernel.reads.values()) in (ROWS * WIDTH * FP32, (ROWS * WIDTH + 1) * FP32)


def test_gather_costs_its_rows_not_the_table() -> None:
    with FakeTensorMode():
        table, index = torch.empty(50_000, WIDTH), torch.empty(ROWS, dtype=torch.int64)
        (kernel,) = function_kernels(lambda table, index: table[index] * 2, table, index)
    assert sum(kernel.reads.values()) == ROWS * (WIDTH * FP32 + index.itemsize)


def test_zeros_and_the_scatter_into_them_are_two_launches() -> None:
    def scatter(places: Tensor, values: Tensor) -> Tensor:
        return torch.zeros(ROWS, 4 * WIDTH).scatter_add(1, places, values)

    with FakeTensorMode():
        places, values = torch.empty(ROWS, WIDTH, dtype=torch.int64), torch.empty(ROWS, WIDTH)
        fill, add = function_kernels(scatter, places, values)
    assert (list(fill.reads.values()), list(fill.writes.values())) == ([], [4 * values.nbytes])
    assert {places.nbytes, values.nbytes} <= set(add.reads.values())
    assert add.writes.keys() == fill.writes.keys() < add.reads.keys()


def test_a_refused_budget_leaves_the_other_rows(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    refused = ActcompPartitioner(Options(budget="1KiB", disable_passes=INLINED))
    block = {"small": lambda: (GeluLinear(), [torch.empty(ROWS, WIDTH, requires_grad=True)])}
    monkeypatch.setattr(traffic, "BLOCKS", block)
    monkeypatch.setattr(traffic, "variants", lambda *_: {"plain": plain, "refused": refused, "again": plain})
    monkeypatch.setattr("sys.argv", ["traffic", "--models", "small"])
    assert traffic.main() == 0
    printed = capsys.readouterr().out
    assert "small, refused: budget of 1024 bytes" in printed
    assert "again" in printed


CODECS: dict[str, tuple[Codec, torch.dtype]] = {
    "8 bit": (Affine(bits=8, rounding="nearest"), torch.bfloat16),
    "8 bit zero": (Affine(bits=8, rounding="nearest", zero_preserving=True), torch.bfloat16),
    "4 bit": (Affine(bits=4, rounding="nearest"), torch.bfloat16),
    "4 bit fp32": (Affine(bits=4, rounding="nearest"), torch.float32),
    "4 bit zero": (Affine(bits=4, rounding="nearest", zero_preserving=True), torch.bfloat16),
    "2 bit": (Affine(bits=2, rounding="nearest", group=128), torch.bfloat16),
    "mask": (Valueset(), torch.bool),
    "int4": (Valueset(count=9), torch.int8),
}


@pytest.mark.parametrize("name", CODECS)
def test_encode_is_one_kernel_that_reads_once(name: str) -> None:
    codec, dtype = CODECS[name]
    with FakeTensorMode():
        x = torch.empty(ROWS, WIDTH, dtype=dtype)
        (kernel,) = function_kernels(lambda x: codec.encode(x, 0), x)
    assert sum(kernel.reads.values()) == ROWS * WIDTH * dtype.itemsize
    assert sum(kernel.writes.values()) == payload_nbytes(codec, ROWS, WIDTH, dtype)


def test_decode_is_one_kernel_and_inlined_into_its_consumer() -> None:
    codec = Affine(bits=4)
    with FakeTensorMode():
        codes, word = torch.empty(ROWS, 8, 64, dtype=torch.uint8), torch.empty(ROWS, 8, dtype=torch.int32)
        g = torch.empty(ROWS, WIDTH, dtype=torch.bfloat16)
        (kernel,) = function_kernels(lambda *a: codec.decode(a[:2], WIDTH, torch.bfloat16).cos() * a[2], codes, word, g)
    assert kernel.nbytes == payload_nbytes(codec, ROWS, WIDTH, torch.bfloat16) + 2 * ROWS * WIDTH * BF16


def test_a_step_with_ours_moves_what_the_plan_says_it_saves() -> None:
    with FakeTensorMode():
        joint = trace(GeluLinear(), [torch.empty(ROWS, WIDTH, dtype=torch.bfloat16, requires_grad=True)])
    pair = partition(joint, ActcompPartitioner(Options(bits=8, disable_passes=INLINED)))
    assert count_encoded(pair[0]) == 1
    assert saved_nbytes(pair[0], 1) == payload_nbytes(Affine(bits=8), ROWS, 2 * WIDTH, torch.bfloat16)
    row, step = measure("gelu", "ours", "bf16", joint, pair)
    # The product's result is read once, by GELU and encode together; torch 2.11 makes two kernels of them.
    hidden = 2 * ROWS * WIDTH * BF16
    kernels = [k.nbytes for k in step.forward if not k.library]
    together = torch.__version__ >= (2, 13) or len(kernels) == 1
    assert sum(kernels) == (2 if together else 3) * hidden + row.saved_nbytes
    assert row.forward.ours == 1 and row.forward.ours_alone == (0 if together else 1)
    assert row.backward.ours == 1 and row.backward.ours_alone == 0


def made_kernel(library: bool, origin: str, reads: dict[str, int], writes: dict[str, int]) -> Kernel:
    return Kernel("k", library, frozenset({origin}), reads, writes)


def test_the_difference_from_plain_is_split_by_what_the_bytes_are() -> None:
    """y = mm(relu(mm(x))), saved in full and encoded; the backward multiplies by the saved and masks with its sign."""
    products = (made_kernel(True, "mm", {"x": 8}, {"b": 8}), made_kernel(True, "mm_1", {"c": 8}, {"y": 8}))
    relu = made_kernel(False, "relu", {"b": 8}, {"c": 8})
    weight, gradient = {"dw": 2}, {"dx": 8}
    plain_step = Step(
        (products[0], relu, products[1]),
        (
            made_kernel(True, "mm_2", {"c": 8, "dy": 8}, weight),
            made_kernel(False, "where", {"c": 8, "dy": 8}, gradient),
        ),
        frozenset({"y", "c", "b"}),
        frozenset(),
    )
    ours = Step(
        (
            products[0],
            made_kernel(False, "actcomp_1", {"b": 8}, {"f": 2}),
            relu,
            made_kernel(False, "actcomp_0", {"c": 8}, {"e": 2}),
            made_kernel(False, "actcomp_2", {"y": 8}, {"g": 2}),
            products[1],
        ),
        (
            made_kernel(False, "actcomp_3", {"actcomp_0_codes": 2}, {"d": 8}),
            made_kernel(True, "mm_2", {"d": 8, "dy": 8}, weight),
            made_kernel(False, "where", {"actcomp_0_codes": 2, "dy": 8}, gradient),
        ),
        frozenset({"y", "e", "f", "g"}),
        frozenset({"e", "f", "g"}),
    )
    parts = compare(ours, plain_step)
    assert (parts.payload_nbytes, parts.operand_nbytes, parts.saved_nbytes) == (3 * 2 + 2 * 2, 8, -8)
    # Of three encodes, two read what ReLU's kernel reads or writes.
    assert (parts.unshared_nbytes, parts.shared_nbytes) == (8, 2 * 8)
    whole = [sum(k.nbytes for k in (*step.forward, *step.backward)) for step in (ours, plain_step)]
    assert parts.nbytes == whole[0] - whole[1] and parts.other_nbytes == 0


def test_what_encodes_do_alone_is_counted_apart() -> None:
    counted = phase(
        [made_kernel(False, "relu", {"b": 8}, {"c": 8}), made_kernel(False, "actcomp_1", {"c": 8}, {"e": 1})]
    )
    assert (counted.ours, counted.ours_alone, counted.ours_alone_nbytes) == (1, 1, 9)


class Residual(nn.Module):
    """Sums that a later sum and a normalization read; the products between them are libraries'."""

    def __init__(self) -> None:
        super().__init__()
        self.linears = nn.ModuleList(nn.Linear(WIDTH, WIDTH, dtype=torch.bfloat16) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for linear in self.linears:
            x = x + linear(torch.nn.functional.layer_norm(x, (WIDTH,)))
        return x


def test_a_residual_stream_is_written_and_not_computed_again_from_all_its_terms() -> None:
    options = Options(bits=4, operand_bits=4, disable_passes=INLINED)
    without = replace(options, disable_passes=(*INLINED, "store_encoded"))
    steps = [step_kernels(Residual, variant=ActcompPartitioner(chosen)) for chosen in (options, without)]
    (stored, _), (again, _) = ([sum(kernel.nbytes for kernel in half) for half in step] for step in steps)
    assert stored < again


class Heads(nn.Module):
    """A tensor that attention returns and a product reads, so that both derivatives want it."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False, dtype=torch.bfloat16)
        self.out = nn.Linear(WIDTH, WIDTH, bias=False, dtype=torch.bfloat16)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.reshape(2, ROWS // 2, 16, 64).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        return self.out(out.transpose(1, 2).reshape(ROWS, WIDTH))


def test_an_attention_output_is_decoded_once_for_both_its_readers() -> None:
    """Heads of the groups that a decode makes are no view of it: attention's derivative would read a copy."""
    _, backward = step_kernels(Heads, variant=ActcompPartitioner(Options(disable_passes=INLINED)))
    made = {buffer for kernel in backward for buffer in kernel.writes}
    decodes = [kernel for kernel in backward if any(name.startswith("actcomp_") for name in kernel.origins)]
    copies = [k for k in decodes if not k.library and any(b in made and size > 2**18 for b, size in k.reads.items())]
    assert decodes and not copies


def test_overlapping_accesses_count_once() -> None:
    def access(low: int, high: int, count: int | None = None) -> Access:
        return Access("a", low, high, high - low + 1 if count is None else count, FP32)

    assert merged_bytes([access(0, 9), access(0, 9)]) == {"a": 10 * FP32}
    assert merged_bytes([access(0, 9), access(5, 14)]) == {"a": 15 * FP32}
    assert merged_bytes([access(0, 9), access(20, 29)]) == {"a": 20 * FP32}
    # Two interleaved halves, and one of them alone.
    assert merged_bytes([access(0, 8, 5), access(1, 9, 5)]) == {"a": 10 * FP32}
    assert merged_bytes([access(0, 8, 5)]) == {"a": 5 * FP32}


def test_arguments_are_cut_outside_of_brackets() -> None:
    assert list(split_arguments("a, f(b, (c, d), [e]), 3, stream=s")) == ["a", "f(b, (c, d), [e])", "3", "stream=s"]


def test_second_loops_over_an_input_are_found() -> None:
    source = """
def triton_red(in_ptr0, in_ptr1, out_ptr0, xnumel):
    for r0_offset in range(0, 8, 4):
        a = tl.load(in_ptr0 + (r0), mask)
    for r0_offset in range(0, 8, 4):
        a = tl.load(in_ptr0 + (r0), mask)
        b = tl.load(in_ptr1 + (r0), mask)
"""
    assert count_passes(source) == [2, 1, 0, 0]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt2", "llama", "vit", "resnet"])
def test_whole_blocks_are_counted(name: str) -> None:
    pytest.importorskip("transformers")
    small = {"batch": 4, "channels": 64} if name == "resnet" else {"batch": 4, "time": 128, "width": 256}
    with FakeTensorMode():
        with default_dtype(torch.bfloat16):
            module, inputs = BLOCKS[name](**small)
        joint = trace(module.train(), inputs)
    reference, *ours = [
        count_row(name, joint, partitioner) for key, partitioner in variants([4]).items() if "ATen" not in key
    ]
    assert reference.encoded == 0 and reference.forward.ours == 0
    assert reference.saved_nbytes > max(row.saved_nbytes for row in ours)
    # The same products and convolutions run in every variant; only copies of their operands may differ.
    assert {row.forward.library for row in ours} == {reference.forward.library}
    for row in ours:
        # Several tensors may be encoded by the kernel that makes them all, but none by two kernels.
        assert min(row.encoded, 1) <= row.forward.ours <= row.encoded
        assert row.nbytes < 1.5 * reference.nbytes
    assert len(table([reference, *ours]).rows) == 1 + len(ours)
    assert len(why_table([reference, *ours]).rows) == len(ours)


def count_row(name: str, joint: Joint, partitioner: Partitioner) -> Row:
    """One variant, counted; every encode that the plan gives to Triton is one launch of the kernel."""
    ours = isinstance(partitioner, ActcompPartitioner)
    nothing = Step((), (), frozenset(), frozenset())
    row, step = measure(name, "", "bf16", joint, partition(joint, partitioner), nothing if ours else None)
    if ours:
        decided = [decision.lowering for decision in fxcompress.reports()[-1].decisions]
        assert sum(kernel.name.startswith("encode_") for kernel in step.forward) == decided.count(TRITON)
    return row


def test_what_a_normalization_made_is_no_part_of_an_encode() -> None:
    """Nor are its statistics, which are handed over as they are. Only names tell that these are ours."""
    graph = fx.Graph()
    names = (
        "actcomp_0_codes",
        "actcomp_0_word",
        "actcomp_12_p0",
        "actcomp_normalized_convolution",
        "actcomp_saved_mean",
        "actcomp_distance_convolution",
        "actcomp_bend_convolution",
    )
    graph.output(tuple(graph.placeholder(name) for name in names))
    assert count_encoded(fx.GraphModule(nn.Module(), graph)) == 2

    def kernel(*origins: str) -> Kernel:
        return Kernel("k", False, frozenset(origins), {}, {})

    made = [kernel("actcomp_bend_convolution"), kernel("relu", "actcomp_distance_convolution")]
    made += [
        kernel("relu", "actcomp_normalized_convolution"),
        kernel("rsqrt", "actcomp_saved_mean", "actcomp_normal_1"),
    ]
    encoding = [
        kernel("sub", "actcomp_normalized_convolution", "actcomp_0_codes"),
        kernel("actcomp_view", "actcomp_12_p0"),
    ]
    counted = phase([*made, *encoding])
    assert (counted.ours, counted.ours_alone) == (2, 1)


def test_a_chain_and_its_encode_are_one_launch_that_reads_once_and_writes_in_place() -> None:
    with FakeTensorMode():
        joint = trace(GeluLinear(), [torch.empty(ROWS, WIDTH, dtype=torch.bfloat16, requires_grad=True)])
    options = Options(bits=2, operand_bits=2, disable_passes=INLINED)
    pairs = [partition(joint, ActcompPartitioner(o)) for o in (options, replace(options, disable_passes=UNFUSED))]
    decided = [[d.lowering for d in report.decisions if d.lowering] for report in fxcompress.reports()[-2:]]
    assert decided == [[FUSED], [TRITON]]
    fused, unfused = (lower_pair(pair, joint.num_fwd_outputs) for pair in pairs)
    hidden = 2 * ROWS * WIDTH * BF16
    payload = payload_nbytes(Affine(bits=2), ROWS, 2 * WIDTH, torch.bfloat16)
    (kernel,) = [k for k in fused.forward if not k.library]
    assert (sum(kernel.reads.values()), sum(kernel.writes.values())) == (hidden, hidden + payload)
    # Inductor runs it in place, as it does its own kernels: no copy, and no memory for the result.
    assert kernel.reads.keys() < kernel.writes.keys()
    assert next(k.name for k in unfused.forward if not k.library).startswith("encode_")
    nbytes = [sum(k.nbytes for k in step.forward) for step in (fused, unfused)]
    assert nbytes[1] - nbytes[0] == hidden
    assert [len(step.backward) for step in (fused, unfused)] == [len(fused.backward)] * 2


@pytest.mark.slow
@pytest.mark.parametrize(("left_out", "name"), [("fuse", "encode"), ("", "compute_and_encode")])
def test_the_kernel_that_inductor_emits_compiles(left_out: str, name: str, tmp_path: Path) -> None:
    """Inductor copies a kernel with everything that it calls; the copy must stand on its own."""
    with FakeTensorMode():
        joint = trace(GeluLinear(), [torch.empty(ROWS, WIDTH, dtype=torch.bfloat16, requires_grad=True)])
    disabled = (*INLINED, left_out) if left_out else INLINED
    pair = partition(joint, ActcompPartitioner(Options(bits=2, operand_bits=2, disable_passes=disabled)))
    with fake_cuda():
        source = kernel_sources(lower(pair[0], is_backward=False, user_outputs=[0]).source)[f"{name}_0"]
    meta = next(line for line in source.splitlines() if line.strip().startswith("triton_meta="))
    start = source.index("@triton_heuristics")
    plain = source[:start] + source[source.index("@triton.jit", start) :]
    path = tmp_path / "emitted.py"
    path.write_text(plain.split("'''", 1)[1])
    spec = importlib.util.spec_from_file_location("emitted", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    signature = ast.literal_eval(re.search(r"'signature': (\{.*?\})", meta)[1])  # type: ignore[index]
    constants = ast.literal_eval(re.search(r"'constants': (\{.*?\})", meta)[1])  # type: ignore[index]
    parameters = {name: kind for name, kind in signature.items() if kind != "constexpr"}
    assert {constants.get("BITS"), constants.get("BITS0")} == {2, None}
    assert compile_kernel(getattr(module, name), parameters, constants, 90, 4)[:4] == b"\x7fELF"


@pytest.mark.slow
def test_a_stochastic_encode_in_aten_is_several_kernels_and_more_bytes() -> None:
    """The count that `pick_lowering` goes by."""
    with FakeTensorMode():
        joint = trace(GeluLinear(), [torch.empty(ROWS, WIDTH, dtype=torch.bfloat16, requires_grad=True)])
    options = Options(bits=2, operand_bits=2, disable_passes=UNFUSED)
    without = replace(options, disable_passes=(*INLINED, "pick_lowering"))
    kernel, aten = (count_row("gelu", joint, ActcompPartitioner(chosen)) for chosen in (options, without))
    assert kernel.encoded == aten.encoded == 1
    assert kernel.forward.ours == kernel.forward.ours_alone == 1 < aten.forward.ours
    hidden = 2 * ROWS * WIDTH * BF16
    assert kernel.forward.ours_alone_nbytes == hidden + kernel.saved_nbytes
    assert aten.forward.nbytes > kernel.forward.nbytes
