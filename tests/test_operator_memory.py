"""What codecs called as operators allocate for themselves: as replayed, and as the allocator was asked."""

import pytest
import torch
from torch import fx
from torch.fx.experimental.proxy_tensor import make_fx

from bench import measure
from fxcompress import codecs
from fxcompress.codecs import operators
from fxcompress.codecs.base import Codec
from fxcompress.compat import FakeTensorMode
from fxcompress.operator_memory import operator_nbytes

CODECS = [codecs.make("affine", bits=4), codecs.make("affine", bits=8, rounding="nearest")]


def calls(codec: Codec, x: torch.Tensor) -> list[fx.Node]:
    """The nodes of an encode and a decode of `x`."""
    text = operators.describe(codec)

    def both(x: torch.Tensor) -> torch.Tensor:
        parts = torch.ops.fxcompress.encode(x, 0, text, 1)
        decoded: torch.Tensor = torch.ops.fxcompress.decode(parts, list(x.shape), text, x.dtype)
        return decoded

    with FakeTensorMode() as mode:
        graph = make_fx(both)(mode.from_tensor(x)).graph
    return [node for node in graph.nodes if "fxcompress" in str(node.target)]


def test_rounding_at_random_takes_room_and_decoding_takes_none() -> None:
    x = torch.empty(64, 512)
    (encode, decode), (nearest, _) = (calls(codec, x) for codec in CODECS)
    assert operator_nbytes(decode) == 0
    assert x.nbytes // 8 <= operator_nbytes(encode) <= x.nbytes
    assert operator_nbytes(nearest) == x.numel() // 128 * 8
    assert all(operator_nbytes(node) == 0 for node in encode.graph.nodes if node is not encode)


@pytest.mark.slow
@pytest.mark.parametrize("codec", CODECS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_it_is_what_the_allocator_is_asked_for(codec: Codec, dtype: torch.dtype) -> None:
    x = torch.randn(256, 512).to(dtype)
    text = operators.describe(codec)
    parts = torch.ops.fxcompress.encode(x, 0, text, 1)
    runs = (
        lambda: torch.ops.fxcompress.encode(x, 0, text, 1),
        lambda: [torch.ops.fxcompress.decode(parts, [256, 512], text, dtype)],
    )
    for node, run in zip(calls(codec, x), runs, strict=True):
        results = sum(part.nbytes for part in run())
        assert measure.peak_bytes(run).total_peak_bytes - results == pytest.approx(operator_nbytes(node), abs=64)
