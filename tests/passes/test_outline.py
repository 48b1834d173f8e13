"""Encodes and decodes as calls of shared subgraphs compute what the inlined ones do."""

import pytest
import torch
import torch.nn.functional as F

from fxcompress import compat, pipeline
from fxcompress.options import Options
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
    nodes = [*pair.fw.graph.nodes, *pair.bw.graph.nodes]
    return [str(node.args[1]) for node in nodes if node.target is compat.invoke_subgraph()]


@pytest.mark.parametrize("bits", [4, 8])
def test_the_same_gradients_from_one_subgraph_per_shape(bits: int) -> None:
    pair = layers()
    inlined, outlined = rewritten(pair, "outline", bits=bits), rewritten(pair, bits=bits)
    assert not calls(inlined)
    names = calls(outlined)
    assert len(names) > len(set(names)) >= 2, "equal layers share their subgraphs"
    torch.manual_seed(1)
    expected = run(inlined)
    torch.manual_seed(1)
    ours = run(outlined)
    assert same(ours.outputs, expected.outputs) and same(ours.gradients, expected.gradients)


def test_exact_codecs_stay_where_they_fuse() -> None:
    copy = layers().copy()
    result = pipeline.run(copy.fw, copy.bw, Options(inner="inductor", min_bytes=64, lossy=False))
    assert any(decision.codec == "valueset" for decision in result.plan.decisions) and not calls(copy)
