"""What compilers see of codecs called as operators: shapes and types, for sizes that they do not know too."""

import json

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from fxcompress import codecs, compat
from fxcompress.codecs import operators
from fxcompress.codecs.base import Codec
from fxcompress.testing import dtypes, examples, fitting, sample


@pytest.mark.parametrize("codec", list(examples()), ids=str)
def test_shapes_are_those_of_the_payload(codec: Codec) -> None:
    dtype = dtypes(codec)[0]
    x = sample(codec, (2, 3, fitting(codec, 130)), dtype)
    expected = codec.encode(x, 5)
    with FakeTensorMode() as mode:
        parts = torch.ops.fxcompress.encode(mode.from_tensor(x), 2, operators.describe(codec), 5)
        decoded = torch.ops.fxcompress.decode(parts, [x.shape[-1]], operators.describe(codec), dtype)
    assert [(p.shape, p.dtype) for p in parts] == [(p.shape, p.dtype) for p in expected]
    assert (decoded.shape, decoded.dtype) == (x.shape, dtype)


@pytest.mark.parametrize("codec", [codec for codec in examples() if codec.contract.kind != "exact"], ids=str)
def test_what_operators_compile_is_whole(codec: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    """With an interpreter in the place of code generation, which has tests of its own."""
    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx_inner", lambda gm, _: lambda parts: gm(*parts))
    width = operators.row_width(codec, fitting(codec, 128))
    function, example = operators.row_function("encode", operators.describe(codec), width, torch.float32, 4)
    kernel = compat.compile_for_rows(function, example, dynamic=True)
    x = sample(codec, (7, width), torch.float32)
    for part, expected in zip(kernel([x, torch.tensor(5)]), codec.encode(x, 5), strict=True):
        assert torch.equal(part.contiguous().view(torch.uint8), expected.contiguous().view(torch.uint8))


def test_a_symbolic_size_stays_symbolic() -> None:
    codec = codecs.make("affine", bits=4)
    mode = FakeTensorMode(shape_env=ShapeEnv())
    x = mode.from_tensor(torch.empty(6, 256), static_shapes=False)
    with mode:
        parts = torch.ops.fxcompress.encode(x[:, :128], 1, operators.describe(codec), 5)
    assert isinstance(parts[0].shape[0], torch.SymInt) and parts[0].shape[1:] == (1, 64)


@pytest.mark.parametrize("codec", list(examples()), ids=str)
def test_a_description_names_the_codec(codec: Codec) -> None:
    text = operators.describe(codec)
    assert codecs.make(**json.loads(text)) == codec and text == operators.describe(codecs.make(**json.loads(text)))
