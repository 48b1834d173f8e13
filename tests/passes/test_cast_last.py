"""A decode that casts last computes the same bits."""

import pytest
import torch
from torch import fx
from torch.fx.experimental.proxy_tensor import make_fx

from fxcompress import codecs, compat
from fxcompress.passes.cast_last import cast_last
from fxcompress.passes.ops import op_name

CASES = {
    "bf16": ("affine", {"bits": 4}, (4, 6, 64), (1, 0, 2), torch.bfloat16),
    "fp16 ragged": ("affine", {"bits": 2, "group": 64}, (5, 70), (0, 1), torch.float16),
    "zeros": ("affine", {"bits": 8, "zero_preserving": True}, (4, 64), (1, 0), torch.bfloat16),
}


def traced(name: str) -> tuple[fx.GraphModule, tuple[torch.Tensor, ...]]:
    """A decode as it is written into a backward, of rows viewed as a tensor in another order, and a payload."""
    kind, params, shape, order, dtype = CASES[name]
    codec = codecs.make(kind, **params)  # type: ignore[arg-type]
    values = torch.randn(shape).to(dtype).abs().flatten()
    parts = codec.encode(values, 7)

    def decode(*parts: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (codec.decode(parts, values.numel(), dtype).reshape(shape).permute(order),)

    return make_fx(decode, tracing_mode="fake", decomposition_table=compat.inductor_decompositions())(*parts), parts


@pytest.mark.parametrize("name", CASES)
def test_the_cast_stands_behind_the_views_and_nothing_changes(name: str) -> None:
    before, parts = traced(name)
    after, _ = traced(name)
    assert cast_last(after)
    (output,) = after.graph.find_nodes(op="output")
    (last,) = output.args[0]
    # A permutation that changes nothing is traced as one too.
    final = last.args[0] if op_name(last) == "permute" else last
    assert op_name(final) == "convert_element_type"
    assert all(node.meta["val"].dtype == CASES[name][-1] for node in (final, last))
    assert final.args[0].meta["val"].dtype == torch.float32
    (one,), (two,) = before(*parts), after(*parts)
    assert one.stride() == two.stride() and torch.equal(one, two)
    assert not cast_last(after)


def test_without_a_cast_there_is_nothing_to_move() -> None:
    codec = codecs.make("affine", bits=4)
    parts = codec.encode(torch.randn(256), 7)
    gm = make_fx(lambda *parts: (codec.decode(parts, 256, torch.float32).reshape(4, 64),), tracing_mode="fake")(*parts)
    nodes = len(gm.graph.nodes)
    assert not cast_last(gm) and len(gm.graph.nodes) == nodes
