"""Codecs called as operators compute, bit for bit, what the codecs compute, whatever the sizes."""

import ast
import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fxcompress import codecs
from fxcompress.codecs import operators
from fxcompress.codecs.base import Codec
from fxcompress.testing import dtypes, examples, fitting, sample

SHAPES = (((), 1024), ((2, 3), 130), ((5, 0), 128))
pytestmark = pytest.mark.slow
"""Every codec here is a run of the C++ compiler."""


def equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    if not one.numel():
        return one.shape == other.shape and one.dtype is other.dtype
    same = one.shape == other.shape and one.dtype is other.dtype
    return same and torch.equal(one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8))


@pytest.mark.parametrize("codec", [codec for codec in examples() if codec.contract.kind != "exact"], ids=str)
def test_equal_to_the_codec(codec: Codec) -> None:
    text = operators.describe(codec)
    for (lead, cols), dtype in itertools.product(SHAPES, dtypes(codec)[:2]):
        x = sample(codec, (*lead, fitting(codec, cols)), dtype)
        expected = codec.encode(x, 5)
        parts = torch.ops.fxcompress.encode(x, len(lead), text, 5)
        assert all(equal(one, other) for one, other in zip(parts, expected, strict=True)), (lead, cols, dtype)
        decoded = torch.ops.fxcompress.decode(parts, [x.shape[-1]], text, dtype)
        assert equal(decoded, codec.decode(expected, x.shape[-1], dtype)) and decoded.is_contiguous()


def test_one_pair_of_kernels_serves_all_sizes() -> None:
    codec = codecs.make("affine", bits=8, rounding="nearest")
    operators._kernel.cache_clear()
    for rows in (1, 2, 7, 4096):
        x = torch.randn(rows, codec.period)
        parts = torch.ops.fxcompress.encode(x, 0, operators.describe(codec), 0)
        torch.ops.fxcompress.decode(parts, [rows, codec.period], operators.describe(codec), x.dtype)
    assert operators._kernel.cache_info().misses == 2


def test_autocast_around_the_first_run_changes_nothing() -> None:
    codec = codecs.make("affine", bits=4)
    operators._kernel.cache_clear()
    x = torch.randn(512)
    with torch.autocast("cpu", torch.bfloat16):
        parts = torch.ops.fxcompress.encode(x, 0, operators.describe(codec), 3)
        decoded = torch.ops.fxcompress.decode(parts, [512], operators.describe(codec), x.dtype)
    expected = codec.encode(x, 3)
    assert all(equal(one, other) for one, other in zip(parts, expected, strict=True))
    assert equal(decoded, codec.decode(expected, 512, x.dtype))


def test_a_fresh_compile_cache_is_without_our_kernels() -> None:
    from torch._inductor.utils import clear_caches

    codec = codecs.make("affine", bits=8, rounding="nearest")
    torch.ops.fxcompress.encode(torch.randn(256), 0, operators.describe(codec), 0)
    assert operators._kernel.cache_info().currsize
    clear_caches()
    assert not operators._kernel.cache_info().currsize


def test_another_process_takes_the_code_from_the_compile_cache(tmp_path: Path) -> None:
    script = (
        "import torch; from torch._dynamo.utils import counters\n"
        "from fxcompress import codecs; from fxcompress.codecs import operators\n"
        "text = operators.describe(codecs.make('affine', bits=8, rounding='nearest'))\n"
        "for rows in (32, 48):\n"
        "    parts = torch.ops.fxcompress.encode(torch.randn(rows, 128), 1, text, 0)\n"
        "    torch.ops.fxcompress.decode(parts, [128], text, torch.float32)\n"
        "print(dict(counters['inductor']))"
    )
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    found = []
    for _ in range(2):
        ran = subprocess.run(
            [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
        )
        found.append(ast.literal_eval(ran.stdout.splitlines()[-1]))
    assert found == [{"fxgraph_cache_miss": 2}, {"fxgraph_cache_hit": 2}]
