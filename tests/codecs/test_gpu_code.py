"""What Inductor makes of decodes on a GPU, where they are fused with what reads them."""

import re

import pytest
import torch
from torch import Tensor
from torch._inductor.decomposition import select_decomp_table
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

pytest.importorskip("triton")

from bench.compat.fake_cuda import fake_cuda, lower
from fxcompress.codecs.affine import Affine
from fxcompress.codecs.base import Codec
from fxcompress.codecs.valueset import Valueset

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
