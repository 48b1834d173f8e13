"""What `explain` says of a model on fake tensors, against the plan that the backend makes when it runs."""

import copy

import pytest
import torch
from torch import nn

import fxcompress
from fxcompress import ledger
from fxcompress.maxbatch import max_batch

SMALL = {"inner": "aot_eager", "min_bytes": 64}


class Copies(nn.Module):
    """Layers that are copies of one, as `nn.TransformerEncoder` and many models make them."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.Sequential(nn.Linear(32, 32), nn.GELU())
        self.layers = nn.Sequential(*(copy.deepcopy(layer) for _ in range(2)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


def case() -> tuple[nn.Module, tuple[torch.Tensor]]:
    return Copies(), (torch.randn(16, 32),)


@pytest.mark.filterwarnings("ignore:Accessing the data pointer")
def test_copied_layers_are_explained_as_they_are_compiled() -> None:
    (explained,) = fxcompress.explain(case, options=SMALL).graphs
    torch._dynamo.reset()
    ledger.clear()
    model, (x,) = case()
    torch.compile(model, backend="actcomp", options=SMALL)(x).sum().backward()
    (compiled,) = ledger.reports()
    assert explained.saved_bytes_after == compiled.saved_bytes_after < compiled.saved_bytes_before
    assert [d.codec for d in explained.decisions] == [d.codec for d in compiled.decisions]


@pytest.mark.filterwarnings("ignore:Accessing the data pointer")
def test_copied_layers_have_a_largest_batch() -> None:
    found = max_batch(case, 1 << 20, inputs=("f32[B,32]",), options=SMALL, variants=("plain",), most=64)
    assert found.answers[0].largest is not None and found.answers[0].next is None


def converted() -> tuple[nn.Module, tuple[torch.Tensor]]:
    """A model in another dtype, of which two layers share their weight."""
    layers = nn.Sequential(nn.Linear(32, 32), nn.GELU(), nn.Linear(32, 32))
    layers[2].weight = layers[0].weight
    return layers.bfloat16(), (torch.randn(16, 32, dtype=torch.bfloat16),)


@pytest.mark.filterwarnings("ignore:Accessing the data pointer")
def test_factories_may_convert_their_model() -> None:
    (graph,) = fxcompress.explain(converted, options=SMALL).graphs
    (kept,) = {d.tensor.dtype for d in graph.decisions if d.codec == "affine"}
    assert kept == "bfloat16"
    assert len([d for d in graph.decisions if d.tensor.shape == (32, 32)]) == 1


class Shifted(nn.Module):
    """Reads a tensor that is none of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(32, 32), nn.GELU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x + SHIFT)


DATA, SHIFT = torch.randn(64, 32), torch.randn(32)
MADE_BEFORE = Shifted()


@pytest.mark.parametrize("model", [Copies, Shifted, lambda: MADE_BEFORE])
def test_factories_may_use_what_was_made_before(model) -> None:
    fresh, given = (
        fxcompress.explain(lambda data=data: (model(), (data()[:16],)), options=SMALL)
        for data in (lambda: torch.randn(64, 32), lambda: DATA)
    )
    assert given == fresh and given.graphs[0].saved_bytes_after < given.graphs[0].saved_bytes_before
