"""Codecs compiled by Inductor give the payload and the decode of eager mode, bit for bit."""

import pytest
import torch

from fxcompress import codecs
from fxcompress.codecs.base import Codec
from fxcompress.testing import dtypes, fitting, sample

pytestmark = pytest.mark.slow
CASES = [
    codecs.make("affine", bits=1),
    codecs.make("affine", bits=2, rounding="nearest"),
    codecs.make("affine", bits=4),
    codecs.make("affine", bits=4, zero_preserving=True),
    codecs.make("affine", bits=8),
    codecs.make("affine", bits=8, rounding="nearest", zero_preserving=True),
    codecs.make("block2d", height=12, width=10),
    codecs.make("bounded"),
    codecs.make("dual", height=12, width=10),
    codecs.make("float8"),
    codecs.make("float8", format="e5m2"),
    codecs.make("valueset", lo=-5, step=3, count=1500),
    codecs.make("valueset"),
]


@pytest.mark.parametrize("codec", CASES, ids=str)
@pytest.mark.parametrize("shape", [(4096,), (3, 131)], ids=str)
def test_inductor_equals_eager(codec: Codec, shape: tuple[int, ...]) -> None:
    torch._dynamo.reset()
    dtype, cols = dtypes(codec)[0], fitting(codec, shape[-1])
    x = sample(codec, (*shape[:-1], cols), dtype)
    if codec.contract.kind != "exact":
        x[..., :16] *= 1e30
        x[..., 64:80] *= 1e-30
    with torch.no_grad():
        parts = torch.compile(lambda x: codec.encode(x, 2**31 + 7), dynamic=False)(x)
        y = torch.compile(lambda *p: codec.decode(p, cols, dtype), dynamic=False)(*parts)
    for one, two in zip(parts, codec.encode(x, 2**31 + 7), strict=True):
        assert torch.equal(one.view(torch.uint8), two.view(torch.uint8))
    assert torch.equal(y, codec.decode(parts, cols, dtype))


def test_inductor_with_symbolic_leading_size() -> None:
    torch._dynamo.reset()
    codec = codecs.make("affine", bits=4)
    compiled = torch.compile(lambda x, salt: codec.encode(x, salt), dynamic=True)
    for rows in (5, 9):
        x = torch.randn(rows, 256)
        for one, two in zip(compiled(x, torch.tensor(3)), codec.encode(x, 3), strict=True):
            assert torch.equal(one, two)


def test_non_finite_groups_under_inductor() -> None:
    torch._dynamo.reset()
    codec = codecs.make("affine", bits=4)
    x = torch.randn(512)
    x[130], x[300] = torch.nan, torch.inf
    y = torch.compile(lambda x: codec.decode(codec.encode(x, 1), 512, x.dtype), dynamic=False)(x)
    assert torch.equal(y.isnan(), torch.tensor([False, True, True, False]).repeat_interleave(128))
