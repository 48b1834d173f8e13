"""What Inductor makes of decodes on a GPU, where they are fused with what reads them."""

import re
from dataclasses import replace

import pytest
import torch
from torch import Tensor, fx
from torch._inductor.decomposition import select_decomp_table
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

pytest.importorskip("triton")

from bench.compat.fake_cuda import fake_cuda, lower
from fxcompress.codecs.affine import Affine
from fxcompress.codecs.base import Codec
from fxcompress.codecs.order import memory_order
from fxcompress.codecs.valueset import Valueset
from fxcompress.passes.alias import Storage
from fxcompress.passes.choose import Choice, Encoding
from fxcompress.passes.fill_rows import fill_rows
from fxcompress.passes.find_saved import SavedPair
from fxcompress.passes.pick_lowering import pick_lowering
from fxcompress.passes.splice import refresh_values
from fxcompress.passes.write_codec import write_encode
from fxcompress.plan import TRITON

ROWS, COLS = 64, 4096
REMAINDER_OF_A_REMAINDER = re.compile(r"% \d+\)+ % ")
"""Such an index Triton does not see to be consecutive, and loads byte by byte: 95 instructions per element, not 61."""


@pytest.mark.parametrize("codec", [Affine(2), Affine(4, zero_preserving=True), Valueset()], ids=lambda c: c.name)
def test_codes_are_loaded_in_vectors(codec: Codec) -> None:
    def reader(x: Tensor, *parts: Tensor) -> tuple[Tensor]:
        mask = isinstance(codec, Valueset)
        y = codec.decode(parts, COLS, torch.bool if mask else torch.bfloat16).reshape(x.shape)
        return (torch.where(y, x, 0.0) if mask else x * y,)

    dtype = torch.bool if isinstance(codec, Valueset) else torch.bfloat16
    with fake_cuda(), FakeTensorMode(), torch.no_grad():
        x = torch.empty(8, ROWS // 8, COLS, dtype=torch.bfloat16)
        parts = [torch.empty(ROWS, *field.shape, dtype=field.dtype) for field in codec.fields(COLS, dtype)]
        gm = make_fx(reader, select_decomp_table(), tracing_mode="fake")(x, *parts)
        source = lower(gm, is_backward=True).source
    assert source.count("@triton.jit") == 1
    assert "tl.load" in source and not REMAINDER_OF_A_REMAINDER.search(source)


@pytest.mark.parametrize("codec", [Affine(8, rounding="nearest"), Affine(2, group=64)], ids=lambda c: c.name)
@pytest.mark.parametrize("channels", [24, 64])
def test_maps_of_symbolic_size_are_encoded_by_one_launch(codec: Affine, channels: int) -> None:
    """Of the same ATen Inductor makes one kernel with loops that it cannot split alike, and fails."""
    dims = [DimDynamic.STATIC, DimDynamic.STATIC, DimDynamic.DYNAMIC, DimDynamic.DYNAMIC]
    mode = FakeTensorMode(shape_env=ShapeEnv())
    x = torch.randn(8, channels, 25, 27, dtype=torch.bfloat16)
    val = mode.from_tensor(x, symbolic_context=StatelessSymbolicContext(dynamic_sizes=dims))
    graph = fx.Graph()
    given = graph.placeholder("x")
    given.meta["val"] = val
    source = graph.call_function(torch.ops.aten.tanh.default, (given,))
    refresh_values([source])
    order = memory_order(val)
    assert order is not None
    with fake_cuda(), mode, torch.no_grad():
        encoding = Encoding(Storage(source, (), "", 0, ()), source, codec, fill_rows(codec, order, source))
        assert encoding.order.row == 128
        encoding = replace(encoding, lowering=lowering_of(encoding))
        assert encoding.lowering == TRITON
        parts = write_encode(graph, encoding, ["codes", "word"], 7, {}, select_decomp_table())
        graph.output((source, *parts))
        source_code = lower(fx.GraphModule({}, graph), is_backward=False).source
    assert source_code.count("encode_0.run(") == 1 and source_code.count(".run(") <= 3


def lowering_of(encoding: Encoding) -> str:
    pair = SavedPair(0, encoding.source, encoding.source)
    known = replace(encoding, storage=replace(encoding.storage, members=(pair,)))
    return pick_lowering(Choice((), (known,)), kernels=True, outline=False).encodings[0].lowering
