"""Which sums of gradients are stored: those whose terms would wait behind a library's kernel."""

import pytest
import torch
from torch import Tensor

from fxcompress.codecs import lowering
from fxcompress.passes.store_sums import store_sums
from fxcompress.testing_graphs import Pair, capture

BLOCKS, SIZE = 4, 32


def chain(x: Tensor, *weights: Tensor) -> Tensor:
    for weight in weights:
        x = torch.relu(x + x @ weight)
    return x


def captured() -> Pair:
    torch.manual_seed(0)
    return capture(chain, [torch.randn(SIZE, SIZE, requires_grad=True) for _ in range(BLOCKS + 1)])


def test_the_gradient_of_a_residual_stream_is_stored_once_it_has_two_terms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lowering, "wanted", lambda val: True)
    pair = captured()
    text = str(pair.bw.graph)
    marked = store_sums(pair.bw)
    # The gradient given is no term of ours, nor is the sum that is returned read again.
    assert len(marked) == BLOCKS - 2
    assert str(pair.bw.graph) == text


def test_nothing_is_marked_on_a_cpu() -> None:
    assert store_sums(captured().bw) == ()
