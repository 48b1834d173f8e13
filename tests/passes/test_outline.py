"""Encodes and decodes as calls of operators compute what the inlined ones do."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import (
    DimDynamic,
    ShapeEnv,
    StatelessSymbolicContext,
    statically_known_true,
)

from fxcompress import codecs, pipeline
from fxcompress.options import Options
from fxcompress.passes.alias import Storage, hint
from fxcompress.passes.choose import Encoding
from fxcompress.passes.find_channels_last import channels_last_order
from fxcompress.passes.ops import op_name
from fxcompress.passes.write_codec import write_encode
from fxcompress.plan import OPERATOR
from fxcompress.testing_graphs import Pair, capture, run, same

LAYERS = 3


def layers() -> Pair:
    """Equal layers: what each saves has one shape."""

    def function(x: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
        for weight in weights:
            x = F.dropout(F.gelu(x @ weight), 0.1)
        return x

    torch.manual_seed(0)
    return capture(function, [torch.randn(64, 64, requires_grad=True) for _ in range(LAYERS + 1)])


def rewritten(pair: Pair, *disabled: str, bits: int) -> Pair:
    copy = pair.copy()
    options = Options(inner="inductor", min_bytes=64, bits=bits, operand_bits=bits, disable_passes=disabled)
    pipeline.run(copy.fw, copy.bw, options)
    return copy


def calls(pair: Pair) -> list[str]:
    """The codec of every call, encodes first."""
    operators = (torch.ops.fxcompress.encode.default, torch.ops.fxcompress.decode.default)
    nodes = [node for gm in (pair.fw, pair.bw) for node in gm.graph.nodes if node.target in operators]
    return [str(node.args[2]) for node in nodes]


@pytest.mark.slow
@pytest.mark.parametrize("bits", [4, 8])
def test_the_same_gradients_from_calls(bits: int) -> None:
    pair = layers()
    inlined, outlined = rewritten(pair, "outline", bits=bits), rewritten(pair, bits=bits)
    assert not calls(inlined)
    assert len(calls(outlined)) >= 2 * LAYERS and len(set(calls(outlined))) == 1, "all tensors share two kernels"
    torch.manual_seed(1)
    expected = run(inlined)
    torch.manual_seed(1)
    ours = run(outlined)
    assert same(ours.outputs, expected.outputs) and same(ours.gradients, expected.gradients)


def maps() -> Pair:
    """Convolutions, which Inductor lays out with channels last."""

    def function(x: torch.Tensor, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        return F.conv2d(F.gelu(F.conv2d(x, first, padding=1)), second, padding=1)

    torch.manual_seed(0)
    sizes = ((2, 16, 9, 9), (24, 16, 3, 3), (8, 24, 3, 3))
    return capture(function, [torch.randn(size, requires_grad=True) for size in sizes])


def test_maps_are_asked_for_as_inductor_has_them() -> None:
    pair = maps()
    outlined = rewritten(pair, bits=8)
    (asked, *_) = (node for node in outlined.fw.graph.nodes if op_name(node) == "inductor_force_stride_order")
    (ordered,) = asked.users
    assert ordered.meta["val"].is_contiguous() and ordered.target is torch.ops.aten.permute.default
    assert calls(outlined)


def test_maps_of_symbolic_size_are_asked_for_by_nodes() -> None:
    sizes = [DimDynamic.DYNAMIC if dim in (0, 2, 3) else DimDynamic.STATIC for dim in range(4)]
    context = StatelessSymbolicContext(dynamic_sizes=sizes)
    val = FakeTensorMode(shape_env=ShapeEnv()).from_tensor(torch.randn(2, 128, 9, 7), symbolic_context=context)
    graph = fx.Graph()
    source = graph.placeholder("x")
    source.meta["val"] = val
    encoding = Encoding(
        Storage(source, (), "", 0, ()), source, codecs.make("affine"), channels_last_order(val), OPERATOR
    )
    with val.fake_mode, warnings.catch_warnings():
        warnings.simplefilter("error")  # PyTorch warns about symbols that are no nodes
        write_encode(graph, encoding, ["codes", "word"], 0, {}, None)
    (asked, *_) = (node for node in graph.nodes if op_name(node) == "inductor_force_stride_order")
    strides = [arg.meta["val"] if isinstance(arg, fx.Node) else arg for arg in asked.args[1]]
    expected = torch.empty(2, 128, 9, 7).to(memory_format=torch.channels_last).stride()
    assert [hint(stride) for stride in strides] == list(expected)
    assert all(statically_known_true(a == b) for a, b in zip(strides, asked.meta["val"].stride(), strict=True))


@pytest.mark.slow
def test_the_same_gradients_from_calls_on_maps() -> None:
    pair = maps()
    inlined, outlined = run(rewritten(pair, "outline", bits=8)), run(rewritten(pair, bits=8))
    assert same(outlined.outputs, inlined.outputs) and same(outlined.gradients, inlined.gradients)


def test_exact_codecs_stay_where_they_fuse() -> None:
    copy = layers().copy()
    result = pipeline.run(copy.fw, copy.bw, Options(inner="inductor", min_bytes=64, lossy=False))
    assert any(decision.codec == "valueset" for decision in result.plan.decisions) and not calls(copy)
