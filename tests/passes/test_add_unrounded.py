"""The gradient of a matrix that is embedding and head, with logits in chunks: rounded once, where that is cheap."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from fxcompress import ledger
from fxcompress.passes.add_unrounded import add_unrounded, find_sum
from fxcompress.passes.write_chunk import Writer

WORDS, WIDTH = 96, 16
FEW, MANY = 8, 512
"""Tokens: fewer than words, and more."""


class Tied(nn.Module):
    """Embedding, one nonlinear layer, the same matrix as head, cross-entropy."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.hidden = nn.Embedding(WORDS, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        z = F.gelu(self.hidden(self.embedding(x))) @ self.embedding.weight.T
        return F.cross_entropy(z, y)


def run_step(run: Callable[[Tensor, Tensor], Tensor], tokens: int) -> None:
    """One compiled step with logits in four chunks."""
    torch._dynamo.reset()
    options = {"inner": "aot_eager", "lossy": False, "loss_chunks": 4}
    data = (torch.randint(WORDS, (tokens,)), torch.randint(WORDS, (tokens,)))
    torch.compile(run, backend="actcomp", options=options)(*data).backward()


def joined(views: int) -> tuple[fx.Graph, fx.Node, fx.Node]:
    """A graph of `product + other`, the product maybe read through transpositions; and a wide value for it."""
    graph = fx.Graph()
    nodes = {}
    with FakeTensorMode():
        for name, dtype in (("product", torch.bfloat16), ("other", torch.bfloat16), ("wide", torch.float32)):
            nodes[name] = graph.placeholder(name)
            nodes[name].meta["val"] = torch.empty(WIDTH, WIDTH, dtype=dtype)
    term = nodes["product"]
    for _ in range(views):
        term = graph.call_function(torch.ops.aten.permute.default, (term, [1, 0]))
    total = graph.call_function(torch.ops.aten.add.Tensor, (term, nodes["other"]))
    total.meta["val"] = nodes["product"].meta["val"]
    graph.output(total)
    return graph, nodes["product"], nodes["wide"]


@pytest.mark.parametrize("views", [0, 1, 2])
@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**32 - 1))
def test_the_sum_is_that_of_unrounded_terms_rounded_once(views: int, seed: int) -> None:
    graph, product, wide = joined(views)
    total = find_sum(product)
    assert total is not None
    with graph.inserting_before(next(iter(graph.find_nodes(op="output")))):
        add_unrounded(Writer(graph, wide.meta["val"].fake_mode), product, wide, total)
    graph.eliminate_dead_code()
    generator = torch.Generator().manual_seed(seed)
    value = torch.randn(WIDTH, WIDTH, generator=generator)
    other = torch.randn(WIDTH, WIDTH, generator=generator).bfloat16()
    got = fx.GraphModule({}, graph)(value.bfloat16(), other, value)
    want = ((value.T if views == 1 else value).double() + other.double()).float().bfloat16()
    assert torch.equal(got, want)


def test_a_product_with_another_reader_has_no_such_sum() -> None:
    graph, product, _ = joined(1)
    with graph.inserting_before(next(iter(graph.find_nodes(op="output")))):
        graph.call_function(torch.ops.aten.neg.default, (product,))
    assert find_sum(product) is None


@pytest.mark.parametrize("tokens, dtype", [(MANY, torch.float32), (FEW, torch.bfloat16)])
def test_only_what_is_small_beside_the_hidden_states_is_saved_in_fp32(tokens: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    net = Tied().to(torch.bfloat16)
    run_step(net, tokens)
    graph = ledger.reports()[-1]
    assert graph.loss.chunks == 4
    saved = [d.tensor for d in graph.decisions if d.tensor.shape == (WORDS, WIDTH)]
    assert str(dtype).removeprefix("torch.") in [tensor.dtype for tensor in saved], saved


def test_a_weight_with_one_use_is_saved_in_its_own_dtype() -> None:
    torch.manual_seed(0)
    net, head = Tied().to(torch.bfloat16), nn.Linear(WIDTH, WORDS, bias=False, dtype=torch.bfloat16)
    run_step(lambda x, y: F.cross_entropy(head(F.gelu(net.hidden(net.embedding(x)))), y), MANY)
    saved = [d.tensor.dtype for d in ledger.reports()[-1].decisions if d.tensor.shape == (WORDS, WIDTH)]
    assert head.weight.grad is not None and "float32" not in saved
