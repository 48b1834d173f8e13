"""Codecs as graphs: traceable with symbolic leading sizes, equal to eager, and small."""

from collections.abc import Callable

import pytest
import torch
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from fxcompress import codecs
from fxcompress.codecs.base import Codec
from fxcompress.testing import dtypes, fitting, sample

CODECS = [
    codecs.make("affine", bits=4, group=16),
    codecs.make("affine", bits=2, rounding="nearest"),
    codecs.make("affine", bits=2, zero_preserving=True, rounding="nearest"),
    codecs.make("block2d", height=9, width=5),
    codecs.make("bounded"),
    codecs.make("dual", height=9, width=5),
    codecs.make("float8"),
    codecs.make("valueset", lo=-5, count=11),
]


def traced(run: Callable[..., object], *inputs: torch.Tensor, mode: str) -> GraphModule:
    with torch.no_grad():
        gm = make_fx(run, tracing_mode=mode)(*inputs)
    gm.graph.eliminate_dead_code()
    gm.recompile()
    return gm


def nodes(gm: GraphModule) -> int:
    return sum(node.op == "call_function" for node in gm.graph.nodes)


@pytest.mark.parametrize("codec", CODECS, ids=str)
def test_one_trace_serves_every_leading_size(codec: Codec) -> None:
    dtype, cols = dtypes(codec)[0], fitting(codec, 70)

    def encode(x: torch.Tensor, salt: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return codec.encode(x, salt)

    salt = torch.tensor(11)
    x = sample(codec, (3, 5, cols), dtype)
    packed = traced(encode, x, salt, mode="symbolic")
    unpacked = traced(lambda *parts: codec.decode(parts, cols, dtype), *codec.encode(x, 11), mode="symbolic")
    for lead in ((3, 5), (2, 7), (6, 4)):
        x = sample(codec, (*lead, cols), dtype)
        parts = packed(x, salt)
        for one, two in zip(parts, codec.encode(x, 11), strict=True):
            assert torch.equal(one.view(torch.uint8), two.view(torch.uint8))
        y = codec.decode(parts, cols, dtype)
        assert torch.equal(unpacked(*parts), y)


def graph_sizes(codec: Codec, x: torch.Tensor) -> tuple[int, int]:
    encode = traced(lambda x: codec.encode(x, 1), x, mode="fake")
    decode = traced(lambda *parts: codec.decode(parts, x.numel(), x.dtype), *codec.encode(x, 1), mode="fake")
    return nodes(encode), nodes(decode)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_graphs_stay_small(bits: int) -> None:
    """Each saved tensor brings one copy of these graphs, so that their size is compile time."""
    x = torch.randn(4096)
    sizes = {}
    for rounding in ("stochastic", "nearest"):
        codec = codecs.make("affine", bits=bits, rounding=rounding)
        sizes[rounding] = graph_sizes(codec, x)
    assert sizes["stochastic"][0] <= 190 and sizes["nearest"][0] <= 64
    assert max(decode for _, decode in sizes.values()) <= 18
