"""Kernels of chains and their encodes under Triton's interpreter. Run by test_chains.py, in a process of its own.

What a chain stores is what Inductor's own kernel for it stores, interpreted too, bit for bit, and near float64;
payloads are `codec.encode` of what memory holds. The interpreter has no `libdevice`: both get Triton's own functions.
"""

import math
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx

from bench.chain_sass import Example, chain_of, trace
from bench.compat.fake_cuda import fake_cuda, lower
from bench.kernel_bytes import kernel_sources
from fxcompress import compat, pipeline
from fxcompress.codecs import lowering, planes
from fxcompress.codecs.affine import Affine, chain_kernel
from fxcompress.codecs.chains import Chain
from fxcompress.codecs.valueset import Valueset
from fxcompress.options import Options
from fxcompress.testing_graphs import Ran, capture, run


@triton.jit
def _erf(x):
    return tl.erf(x)


@triton.jit
def _exp(x):
    return tl.exp(x)


@triton.jit
def _tanh(x):
    return 2 * tl.sigmoid(2 * x) - 1


@triton.jit
def _mul(x, y):
    return x * y


LIBDEVICE = SimpleNamespace(erf=_erf, exp=_exp, tanh=_tanh, mul_rn=_mul)
chain_kernel.libdevice = LIBDEVICE
FLOATS = (torch.float32, torch.bfloat16, torch.float16)
NAN_WORD = 0x7FC00000


def cubed(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(0.79788456 * (x + 0.044715 * torch.pow(x, 3.0))))


FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "gelu": F.gelu,
    "tanh gelu": lambda x: F.gelu(x, approximate="tanh"),
    "new gelu": cubed,
    "swiglu": lambda x, y: F.silu(x) * y,
    "relu squared": lambda x: F.relu(x) ** 2,
    "gate": lambda x, y, z: torch.sigmoid(x) * y - z,
    "quotient": lambda x, y: -x / (1 + torch.exp(y)),
}


def count_inputs(name: str) -> int:
    return {"swiglu": 2, "gate": 3, "quotient": 2}.get(name, 1)


def traced(name: str, dtype: torch.dtype, cols: int) -> fx.GraphModule:
    return trace(Example(FUNCTIONS[name], full=count_inputs(name)), dtype, cols)


def inductor_result(gm: fx.GraphModule, inputs: list[Tensor], folder: Path) -> Tensor:
    """What the kernel that Inductor generates for the graph stores."""
    with fake_cuda():
        (source,) = kernel_sources(lower(gm, is_backward=False).source).values()
    start = source.index("@triton_heuristics")
    body = (source[:start] + source[source.index("@triton.jit", start) :]).split("'''", 1)[1]
    body = body.replace("triton_helpers.set_driver_to_gpu()", "")
    path = folder / "generated.py"
    path.write_text(body)
    scope: dict[str, Any] = {"__name__": "generated", "__file__": str(path)}
    exec(compile(body, str(path), "exec"), scope)
    scope["libdevice"] = LIBDEVICE
    kernel = scope[re.search(r"def (triton_\w+)", body)[1]]  # type: ignore[index]
    out = torch.empty_like(inputs[0])
    count = out.numel()
    kernel[(triton.cdiv(count, 1024),)](*inputs, out, count, XBLOCK=1024)
    return out


def same(one: Tensor, two: Tensor) -> bool:
    return torch.equal(one.isnan(), two.isnan()) and torch.equal(one.nan_to_num(7), two.nan_to_num(7))


def awkward(cols: int, dtype: torch.dtype, seed: int) -> Tensor:
    x = 3 * torch.randn(cols, generator=torch.Generator().manual_seed(seed))
    special = [math.nan, math.inf, -math.inf, 0.0, -0.0, 1e-30, 80.0, -80.0, 6e4]
    x[torch.randint(cols, (len(special),), generator=torch.Generator().manual_seed(seed))] = torch.tensor(special)
    return x.to(dtype)


def check(chain: Chain, codecs: list[Affine], inputs: list[Tensor]) -> Tensor:
    """The result, after its payloads are compared."""
    result, *parts = lowering.encode_chain(chain, codecs, inputs, [inputs[0].dtype])
    values = dict(zip(chain.inputs, inputs, strict=True)) | {"r": result}
    for name, codec, at in zip(chain.encoded, codecs, range(0, len(parts), 2), strict=True):
        codes, word = codec.encode(values[name], 0)
        assert torch.equal(parts[at + 1], word)
        finite = word != NAN_WORD
        assert torch.equal(parts[at][finite], codes[finite])
    return result


@pytest.mark.parametrize(
    ("name", "dtype"),
    [(name, dtype) for name in FUNCTIONS for dtype in FLOATS if dtype != torch.float16 or name in ("gelu", "swiglu")],
    ids=str,
)
def test_results_are_those_of_inductors_kernel(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    cols = 1024 + 64
    gm = traced(name, dtype, cols)
    inputs = [awkward(cols, dtype, seed) for seed in range(count_inputs(name))]
    chain = chain_of(gm, ["i0", "i1"][: len(inputs)])
    result = check(chain, [Affine(2), Affine(4, group=64)][: len(chain.encoded)], inputs)
    assert same(result, inductor_result(gm, inputs, tmp_path))
    exact = FUNCTIONS[name](*(x.double() for x in inputs))
    usual = exact.isfinite() & (exact.abs() < 6e4)
    # The interpreter truncates to bf16.
    eps = torch.finfo(dtype).eps
    assert torch.allclose(result.double()[usual], exact[usual], rtol=2 * eps, atol=8 * eps)


@pytest.mark.parametrize(
    ("codec", "cols"),
    [(Affine(2), 1000), (Affine(2), 64 * 130), (Affine(1), 7), (Affine(4), 1001), (Affine(8, 0, "nearest"), 1016)],
    ids=str,
)
def test_odd_sizes(codec: Affine, cols: int) -> None:
    dtype = FLOATS[cols % 3]
    gm = traced("swiglu", dtype, cols)
    inputs = [awkward(cols, dtype, seed) for seed in range(2)]
    check(chain_of(gm, ["i1", "i0"]), [codec, codec], inputs)


@pytest.mark.parametrize("dtype", FLOATS[1:], ids=str)
def test_what_is_made_is_encoded_as_it_is_stored(dtype: torch.dtype) -> None:
    gm = traced("gelu", dtype, 1001)
    codecs = [Affine(4), Affine(8, 0, "nearest")]
    check(chain_of(gm, ["i0", "r"]), codecs, [awkward(1001, dtype, 1)])
    zero_keeping = Affine(2, 0, "stochastic", zero_preserving=True)
    relu = Chain(("a",), (("t", "tl.where(0.0 > a, 0.0, a)"), ("r", "t + 0.0")), ("t",), ("r",))
    check(relu, [zero_keeping], [awkward(1001, dtype, 2)])


@settings(max_examples=4, deadline=None)
@given(st.integers(1, 200), st.sampled_from(FLOATS), st.sampled_from((1, 2, 4, 8)), st.integers(0, 99))
def test_any_size(cols: int, dtype: torch.dtype, bits: int, seed: int) -> None:
    chain = Chain(("a", "b"), (("s", "a + b"), ("t", "s * s")), ("t",), ("a", "b"))
    x = [torch.randn(cols, generator=torch.Generator().manual_seed(seed + i)).to(dtype) for i in range(2)]
    codecs = [Affine(bits, 64), Affine(bits, 64, "nearest")]
    assert same(check(chain, codecs, x), chain_in_torch(*x))


def chain_in_torch(a: Tensor, b: Tensor) -> Tensor:
    """(a + b)², rounded once, as the interpreter rounds: towards zero to bf16."""
    exact = (a.float() + b.float()).square()
    if a.dtype == torch.bfloat16:
        exact = (exact.view(torch.int32) & -65536).view(torch.float32)
    return exact.to(a.dtype)


def rectified(rows: Tensor, mean: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """relu((x - mean)·scale) as the interpreter stores it, and where it is not positive."""
    period = mean.numel()
    y = ((rows.float().view(-1, period) - mean.float()) * scale.float()).relu().flatten()
    if rows.dtype == torch.bfloat16:
        y = (y.view(torch.int32) & -65536).view(torch.float32)
    y = y.to(rows.dtype)
    return y, y <= 0


@pytest.mark.parametrize(
    ("codec", "period", "cols"),
    [
        (Affine(4), 64, 128 * 33),
        (Affine(4), 512, 512 * 9),
        (Affine(2), 24, 24 * 64 * 3),
        (Affine(4), 40, 40 * 31),
        (Affine(8, 0, "nearest"), 128, 128 * 5),
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", FLOATS[:2], ids=str)
def test_channels_come_again_and_masks_are_packed(codec: Affine, period: int, cols: int, dtype: torch.dtype) -> None:
    x = awkward(cols, dtype, 1).nan_to_num(0.5, 9, -9)
    mean, scale = torch.randn(period, generator=torch.Generator().manual_seed(2)), torch.rand(period) + 0.5
    scale = scale.to(torch.bfloat16)
    name = str(dtype).removeprefix("torch.")
    steps = (
        ("a", "x - m"),
        ("b", "a * s"),
        ("t", "tl.where(0.0 > b, 0.0, b)"),
        ("r", f"t.to(tl.{name}).to(tl.float32)"),
        ("k", "r <= 0.0"),
    )
    mask = Valueset()
    packs = lowering.fits_mask(mask, [codec], cols)
    assert packs == (cols % codec.group == 0)
    chain = Chain(("x", "m", "s"), steps, ("t",), ("x", "r"), ("k",) if packs else (), ("m", "s"))
    result, *parts = lowering.encode_chain(chain, [codec, codec], [x, mean, scale], [dtype])
    wanted, zero = rectified(x, mean, scale)
    assert same(result, wanted)
    for value, at in ((x, 0), (wanted, 2)):
        assert all(same(one, two) for one, two in zip(parts[at : at + 2], codec.encode(value, 0), strict=True))
    if packs:
        assert torch.equal(parts[4], mask.encode(zero, 0)[0])


def test_a_mask_alone_is_packed() -> None:
    x = awkward(128 * 33, torch.float16, 3)
    chain = Chain(("x",), (("t", "tl.where(0.0 > x, 0.0, x)"), ("k", "x >= 0.5")), ("t",), (), ("k",))
    result, bits = lowering.encode_chain(chain, [], [x], [torch.float16])
    assert same(result, x.relu()) and torch.equal(bits, Valueset().encode(x >= 0.5, 0)[0])


def test_a_result_takes_the_place_of_an_operand_where_tiles_are_full() -> None:
    chain = Chain(("a", "b"), (("t", "a * b"),), ("t",), ("a",), over=(("t", "b"),))
    for cols, over in ((128 * 32, True), (128 * 32 + 64, False)):
        a, b = awkward(cols, torch.float32, 1), awkward(cols, torch.float32, 2)
        wanted, payload = a * b, Affine(4).encode(a, 0)
        result, codes, word = lowering.encode_chain(chain, [Affine(4)], [a, b], [torch.float32])
        assert (result.data_ptr() == b.data_ptr()) == over
        assert same(result, wanted) and torch.equal(word, payload[1])
        assert torch.equal(codes[word != NAN_WORD], payload[0][word != NAN_WORD])


def test_rows_that_start_at_an_odd_element() -> None:
    chain = Chain(("a", "b"), (("t", "a * b"),), ("t",), ("a",))
    check(chain, [Affine(2)], [awkward(257, torch.bfloat16, 1)[1:], awkward(256, torch.bfloat16, 2)])


def layers(x: Tensor, *weights: Tensor) -> Tensor:
    for up, gate, down in zip(weights[::3], weights[1::3], weights[2::3], strict=True):
        inner = x @ gate
        x = (inner * torch.sigmoid(inner) * (x @ up)) @ down
    return x


def normed(x: Tensor, *weights: Tensor) -> Tensor:
    """Two normalizations of columns with ReLU, the first's result taken off the second: nothing but exact operators."""
    first, second, third = weights
    inner = x @ first
    variance, mean = torch.var_mean(inner, 0, correction=0, keepdim=True)
    between = torch.relu((inner - mean) * torch.rsqrt(variance + 1))
    inner = between @ second
    variance, mean = torch.var_mean(inner, 0, correction=0, keepdim=True)
    return torch.relu((inner - mean) * torch.rsqrt(variance + 1) - between) @ third


def run_both(
    function: Callable[..., Tensor], count: int, monkeypatch: pytest.MonkeyPatch
) -> tuple[list[int], list[Ran]]:
    """Launches and what they come to, unfused and fused."""
    monkeypatch.setattr(lowering, "wanted", lambda _: True)
    monkeypatch.setattr(planes, "wanted", lambda _: True)
    torch.manual_seed(0)
    pair = capture(
        function, [torch.randn(64, 64, requires_grad=True), *(torch.randn(64, 64) / 8 for _ in range(count))]
    )
    ran, launches = [], []
    for disabled in (("outline", "fuse"), ("outline",)):
        copy = pair.copy()
        options = Options(
            min_bytes=64, bits=4, operand_bits=4, rounding="stochastic", disable_passes=disabled, inner="inductor"
        )
        pipeline.run(copy.fw, copy.bw, options)
        launches.append(len(compat.triton_nodes(copy.fw.graph)))
        ran.append(run(copy))
    return launches, ran


def test_a_rewritten_pair_of_exact_operators_is_equal_bit_for_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    launches, (unfused, fused) = run_both(normed, 3, monkeypatch)
    assert launches == [2, 2]
    assert same(fused.outputs[0], unfused.outputs[0])
    assert all(same(one, two) for one, two in zip(fused.saved, unfused.saved, strict=True))
    assert all(same(one, two) for one, two in zip(fused.gradients, unfused.gradients, strict=True) if one is not None)


STEPS = ("neg", "relu", "half", "square", "less", "times", "select")


@settings(max_examples=6, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=6))
def test_any_chain_of_exact_operators_is_equal_bit_for_bit(steps: list[tuple[str, int, int]]) -> None:
    def function(x: Tensor, *weights: Tensor) -> Tensor:
        values = [x @ weights[0], x @ weights[1]]
        for name, first, second in steps:
            one, two = values[first % len(values)], values[second % len(values)]
            unary = {"neg": -one, "relu": one.relu(), "half": one * 0.5, "square": one**2}
            chosen = torch.where(one > 0, two.clamp_min(0.25), two.clamp_max(0.0))
            values.append({**unary, "less": one - two, "times": one * two, "select": chosen}[name])
        return values[-1] @ weights[2]

    with pytest.MonkeyPatch.context() as patch:
        _, (unfused, fused) = run_both(function, 3, patch)
    assert same(fused.outputs[0], unfused.outputs[0])
    assert all(same(one, two) for one, two in zip(fused.saved, unfused.saved, strict=True))
    assert all(same(one, two) for one, two in zip(fused.gradients, unfused.gradients, strict=True) if one is not None)


def test_a_rewritten_pair_computes_the_same_fused_and_not(monkeypatch: pytest.MonkeyPatch) -> None:
    launches, (unfused, fused) = run_both(layers, 6, monkeypatch)
    assert launches == [6, 2]
    # Triton's functions in the interpreter and ATen's on a CPU differ in the last bits, and codes with them.
    assert torch.allclose(fused.outputs[0], unfused.outputs[0], rtol=1e-4, atol=1e-5)
    equal = [torch.equal(one, two) for one, two in zip(fused.saved, unfused.saved, strict=True)]
    assert sum(equal) >= 4
    for one, two in zip(fused.gradients, unfused.gradients, strict=True):
        assert one is None or torch.nn.functional.cosine_similarity(one.flatten(), two.flatten(), 0) > 0.99
