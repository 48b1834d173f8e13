"""Kernels of chains without a GPU: interpreted in another process, and their machine code here."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from bench.chain_sass import CHAINS, SIZE, Counts, measure, measure_alone, measure_chain
from bench.sass import ARCHS
from fxcompress.codecs.affine import Affine, chain_kernel, launch
from fxcompress.codecs.chains import Chain
from fxcompress.passes import fuse

CASES = Path(__file__).with_name("interpreted_chains.py")
ENCODE = 12.5
"""Most instructions per element and encode beyond those of the chain: those of an encode by itself at most."""


def test_numerics_under_the_interpreter() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=short", str(CASES)]
    done = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed and int(passed[1]) >= 35


def check(counts: Counts) -> None:
    assert counts.spills == counts.barriers == 0, counts
    assert counts.load_bits == counts.store_bits == 128, counts
    # A group of 1-bit codes is one thread's: 64 elements of each tensor, where others have 32.
    assert counts.registers <= (192 if counts.what == "1 bit" else 128), counts


@pytest.mark.parametrize("name", ["gelu", "swiglu"])
def test_the_chain_is_the_arithmetic_of_inductors_kernel_and_the_encode_that_of_ours(name: str) -> None:
    """Contracted alike: as many products, sums and fused ones per element, but for what one encode takes."""
    fused, alone = measure(name, Affine(2), torch.bfloat16, 90), measure_alone(name, torch.bfloat16)
    check(fused)
    encodes = CHAINS[name].encoded
    # A difference, a product and a fused one per element, and what a group takes.
    rest = [both - own for both, own in zip(fused.arithmetic, alone.arithmetic, strict=True)]
    assert all(round(r - encodes * (i < 3), 2) <= encodes * 0.25 for i, r in enumerate(rest)), (fused, alone)
    assert all(r >= encodes * (i < 3) for i, r in enumerate(rest)), (fused, alone)
    assert fused.per_element <= alone.per_element + encodes * ENCODE, (fused, alone)


ROUNDED = {
    "add": "a + b",
    "sub": "a - b",
    "div": "a / b",
    "sigmoid": "tl.sigmoid(a)",
    "tanh": "libdevice.tanh(a)",
    "erf": "libdevice.erf(a)",
    "relu": "tl.where(0.0 > p, 0.0, p)",
    "where": "tl.where(a > 0.0, p, b)",
    "rounded mul": "libdevice.mul_rn(a, b)",
}
CONTRACTED = {"mul": "a * b", "neg": "-p", "exp": "libdevice.exp(a)"}


def arithmetic(expression: str, encoded: str) -> tuple[float, ...]:
    """Instructions per element of an fp32 kernel that stores an expression t of a, b and their product p, and encodes
    the value named."""
    steps = (("p", "a * b"), ("t", expression), ("r", "t"))
    return measure_chain(Chain(("a", "b"), steps, ("t",), (encoded,)), torch.float32).arithmetic


@pytest.mark.slow
@pytest.mark.parametrize("name", [*ROUNDED, *CONTRACTED])
def test_no_fp32_result_is_contracted_with_its_encode(name: str) -> None:
    """The interpreter cannot see it: products are fused with the encode's difference where nothing is in between."""
    expression = (ROUNDED | CONTRACTED)[name]
    equal = arithmetic(expression, "a") == arithmetic(expression, "r")
    assert equal == (name in ROUNDED) == (name in fuse.ROUNDED or name == "rounded mul")


@pytest.mark.parametrize("bits", [2, 4])
def test_a_norm_with_a_mask_stays_in_registers(bits: int) -> None:
    counts = measure("norm add relu", Affine(bits), torch.bfloat16, 90)
    check(counts)
    assert counts.per_element <= 34, counts


@pytest.mark.parametrize("bits", [2, 8])
def test_a_norm_whose_codes_answer_for_the_mask_stays_in_registers(bits: int) -> None:
    steps = (
        ("n", "(x - m) * s"),
        ("y", "n * w + b"),
        ("t", "tl.where(0.0 > y, 0.0, y)"),
        ("d", "n * g + z"),
        ("c", "t > 0.0"),
        ("v", "tl.where(c, tl.where(d < 6e-8, 6e-8, d), tl.where(d > 0.0, 0.0, d))"),
        ("r", "v.to(tl.bfloat16).to(tl.float32)"),
    )
    short = ("m", "s", "w", "b", "g", "z")
    chain = Chain(("x", *short), steps, ("t",), ("r",), repeated=short)
    codec = Affine(bits, 0, "stochastic", sign_preserving=True)
    check(measure_chain(chain, torch.bfloat16, name="distance", codec=codec))


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", CHAINS)
def test_every_chain(name: str, dtype: torch.dtype, bits: int, arch: int) -> None:
    codec = Affine(bits)
    if launch.refuse_together([codec] * CHAINS[name].encoded, SIZE, dtype):
        assert (name, bits, dtype) == ("swiglu", 1, torch.float32)
        return
    check(measure(name, codec, dtype, arch))


def test_equal_chains_are_one_kernel() -> None:
    one, two = (Chain(("a",), (("t", "a + 1.0"),), ("t",), ("a",)) for _ in range(2))
    assert chain_kernel.jit(chain_kernel.write_source(one)) is chain_kernel.jit(chain_kernel.write_source(two))
