"""A product whose operands wait for its sum is pinned, and nothing else is; results stay what they were."""

import torch
import torch.nn.functional as F
from torch import fx

from fxcompress.passes.ops import op_name
from fxcompress.passes.pin_products import pin_products
from fxcompress.testing_graphs import Pair, capture, run, same

TOKENS, WIDTH, WORDS = 24, 8, 64


def tied(tie: bool) -> Pair:
    """A language model whose head reads the embedding's weight, or one of its own."""

    def function(words: torch.Tensor, own: torch.Tensor, middle: torch.Tensor) -> torch.Tensor:
        tokens = torch.arange(TOKENS) % WORDS
        hidden = F.gelu(F.embedding(tokens, words) @ middle)
        return F.cross_entropy(F.linear(hidden, words if tie else own), tokens)

    torch.manual_seed(0)
    sizes = ((WORDS, WIDTH), (WORDS, WIDTH), (WIDTH, WIDTH))
    return capture(function, [torch.randn(size, requires_grad=True) for size in sizes]).copy()


def pinned(gm: fx.GraphModule) -> list[fx.Node]:
    return [node for node in gm.graph.nodes if op_name(node) == "as_strided" and op_name(node.args[0]) == "mm"]


def test_the_head_of_a_tied_embedding_is_pinned() -> None:
    pair = tied(True)
    expected = run(pair)
    (name,) = pin_products(pair.fw, pair.bw)
    pair.bw.graph.lint()
    pair.bw.recompile()
    (view,) = pinned(pair.bw)
    assert view.args[0].name == name
    result = run(pair)
    assert same(result.outputs, expected.outputs) and same(result.gradients, expected.gradients)


def test_a_second_time_changes_nothing() -> None:
    pair = tied(True)
    pin_products(pair.fw, pair.bw)
    before = str(pair.bw.graph)
    assert pin_products(pair.fw, pair.bw) == () and str(pair.bw.graph) == before


def test_a_head_of_its_own_is_left_alone() -> None:
    pair = tied(False)
    assert pin_products(pair.fw, pair.bw) == () and not pinned(pair.bw)


def graph_of(*, late: bool, wide: bool) -> tuple[fx.GraphModule, fx.GraphModule]:
    """`mm(exp(x), y) + z`: z computed before or after the product; the product's operand larger than it or smaller."""
    rows = 64 if wide else 4
    bw = fx.Graph()
    vals = {"x": torch.empty(8, rows), "y": torch.empty(rows, 8), "z": torch.empty(8, 8)}
    x, y, z = (bw.placeholder(name) for name in vals)
    for node in (x, y, z):
        node.meta["val"] = vals[node.name]

    def call(target: object, *args: fx.Node) -> fx.Node:
        node = bw.call_function(target, args)  # type: ignore[arg-type]
        node.meta["val"] = torch.empty(
            (8, 8) if target is not torch.ops.aten.exp.default or args[0] is z else (8, rows)
        )
        return node

    first = call(torch.ops.aten.exp.default, x)
    other = None if late else call(torch.ops.aten.exp.default, z)
    product = call(torch.ops.aten.mm.default, first, y)
    other = other or call(torch.ops.aten.exp.default, z)
    bw.output((call(torch.ops.aten.add.Tensor, product, other),))
    return fx.GraphModule({}, fx.Graph()), fx.GraphModule({}, bw)


def test_only_a_late_sum_of_a_product_with_large_operands() -> None:
    for late, wide in ((True, True), (True, False), (False, True)):
        assert bool(pin_products(*graph_of(late=late, wide=wide))) == (late and wide)


def test_a_product_whose_sum_reads_one_that_is_pinned_already() -> None:

    def function(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        for _ in range(4):
            x = torch.sin(x @ weight)
        return x.sum()

    torch.manual_seed(0)
    pair = capture(function, [torch.randn(size, requires_grad=True) for size in ((256, 16), (16, 16))]).copy()
    expected = run(pair)
    assert pin_products(pair.fw, pair.bw)
    pair.bw.recompile()
    assert same(run(pair).gradients, expected.gradients)
