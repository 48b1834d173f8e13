"""Arguments of activations that are linear on one side, in derivatives of one operator and taken apart."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from fxcompress import compat
from fxcompress.passes.demand import gradient_nodes
from fxcompress.passes.find_ramps import find_ramps
from fxcompress.testing_graphs import backward_inputs, capture, run

RAMPS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu by tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "mish": F.mish,
    "of a normalized value": lambda x: F.silu(x * 2 - 1),
}
OTHERS: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "exponential": torch.exp,
    "gates": lambda x: torch.lerp(x[:4], x[4:].tanh(), x[:4].sigmoid()),
    "scaled": lambda x: 3 * (2 * x).sigmoid(),
}


def ramps(function: Callable[[Tensor], Tensor], *, decomposed: bool) -> set[fx.Node]:
    pair = capture(function, (torch.randn(8, 16, requires_grad=True),), "default")
    bw = pair.bw
    inputs = backward_inputs(run(pair).saved, pair.tangents)
    if decomposed:
        bw = make_fx(bw, compat.inductor_decompositions())(*inputs)
    given = bw.graph.find_nodes(op="placeholder")
    saved = set(given[: len(given) - len(pair.tangents)])
    return find_ramps(bw, gradient_nodes(bw, saved))


@pytest.mark.parametrize("decomposed", [False, True])
@pytest.mark.parametrize("name", RAMPS)
def test_arguments_of_ramps_are_found(name: str, decomposed: bool) -> None:
    found = ramps(RAMPS[name], decomposed=decomposed)
    assert len(found) == 1 and not any(node.name.startswith("tangents") for node in found)


@pytest.mark.parametrize("decomposed", [False, True])
@pytest.mark.parametrize("name", OTHERS)
def test_those_of_others_are_not(name: str, decomposed: bool) -> None:
    assert not ramps(OTHERS[name], decomposed=decomposed)
