"""Rows, families, linearity and the order of nodes on graphs made by hand."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from fxcompress.passes import loss_ops  # noqa: F401
from fxcompress.passes.joint_outputs import add_outputs, sort_graph, strip_outputs
from fxcompress.passes.linear_in import explain_nonlinear
from fxcompress.passes.row_ops import family, sums_tokens
from fxcompress.passes.row_slices import is_zero
from fxcompress.passes.token_rows import Read, Rows, Unchunkable, aligned, strip

aten = torch.ops.aten


def one_call(function, *tensors):
    """The graph of one operator on fakes of `tensors`, and its node."""
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(tensor) for tensor in tensors]
        gm = make_fx(function)(*fakes)
    (node,) = [node for node in gm.graph.nodes if node.op == "call_function"]
    return gm, node


ROWS = [
    (lambda x: aten.view.default(x, [24, 5]), (4, 6, 5), Rows(0, 2), Rows(0, 1)),
    (lambda x: aten.view.default(x, [4, 6, 5]), (24, 5), Rows(0, 1), Rows(0, 2)),
    (lambda x: aten.view.default(x, [24, 1, 5]), (24, 5), Rows(0, 1), Rows(0, 1)),
    (lambda x: aten.unsqueeze.default(x, 1), (24,), Rows(0, 1), Rows(0, 1)),
    (lambda x: aten.unsqueeze.default(x, 0), (24,), Rows(0, 1), Rows(1, 2)),
    (lambda x: aten.squeeze.dim(x, 1), (24, 1), Rows(0, 1), Rows(0, 1)),
    (lambda x: aten.permute.default(x, [1, 0]), (24, 5), Rows(0, 1), Rows(1, 2)),
    (lambda x: aten.permute.default(x, [2, 0, 1]), (4, 6, 5), Rows(0, 2), Rows(1, 3)),
    (lambda x: aten.transpose.int(x, 0, 1), (24, 5), Rows(0, 1), Rows(1, 2)),
    (lambda x: aten.sum.dim_IntList(x, [0]), (5, 24), Rows(1, 2), Rows(0, 1)),
    (lambda x: aten.amax.default(x, [-1], True), (4, 6, 5), Rows(0, 2), Rows(0, 2)),
    (lambda x: aten._log_softmax.default(x, 1, False), (24, 5), Rows(0, 1), Rows(0, 1)),
    (lambda x: aten.slice.Tensor(x, 1, 0, 3), (24, 5), Rows(0, 1), Rows(0, 1)),
    (lambda x: aten.slice.Tensor(x, 1, 0, -1), (4, 6, 5), Rows(0, 2), Rows(0, 2, cut=True)),
    (lambda x: aten.expand.default(x, [3, 24, 5]), (24, 5), Rows(0, 1), Rows(1, 2)),
]


@pytest.mark.parametrize("function, shape, before, after", ROWS)
def test_rows_are_followed_forwards_and_backwards(function, shape, before, after):
    _, node = one_call(function, torch.zeros(shape))
    (operand,) = node.all_input_nodes
    assert family(node).result(node, operand, before) == after
    assert family(node).operands(node, after)[operand] == Read(before)


@pytest.mark.parametrize(
    "function, shape, rows",
    [
        (lambda x: aten.view.default(x, [4, 30]), (24, 5), Rows(0, 1)),
        (lambda x: aten.permute.default(x, [0, 2, 1]), (4, 6, 5), Rows(0, 2)),
        (lambda x: aten.amax.default(x, [1]), (4, 6, 5), Rows(0, 2)),
        (lambda x: aten._log_softmax.default(x, 0, False), (24, 5), Rows(0, 1)),
        (lambda x: aten.slice.Tensor(x, 0, 0, 24, 2), (24, 5), Rows(0, 1)),
        (lambda x: aten.cumsum.default(x, 0), (24, 5), Rows(0, 1)),
    ],
)
def test_what_mixes_tokens_is_refused(function, shape, rows):
    _, node = one_call(function, torch.zeros(shape))
    with pytest.raises(Unchunkable):
        family(node).result(node, node.all_input_nodes[0], rows)


def test_operands_that_are_broadcast():
    def read(shape, rows, out=(4, 6, 5)):
        _, node = one_call(lambda a, b: aten.add.Tensor(a, b), torch.zeros(out), torch.zeros(shape))
        return aligned(node.all_input_nodes[1], node, rows)

    rows = Rows(0, 2)
    assert read((4, 6, 1), rows) == Read(rows)
    assert read((5,), rows) == Read(None)
    assert read((1, 1, 5), rows) == Read(None, ones=(0, 2))
    assert read((6, 1), rows) == Read(rows, spread=(4, 6, 1))
    assert read((4, 1, 1), rows) == Read(rows, spread=(4, 6, 1))
    with pytest.raises(Unchunkable):
        read((6, 5), rows)


@given(st.lists(st.sampled_from([1, 1, 2, 3]), min_size=1, max_size=5), st.data())
def test_strip_keeps_the_tokens(shape, data):
    first = data.draw(st.integers(0, len(shape) - 1))
    last = data.draw(st.integers(first + 1, len(shape)))
    rows = strip(Rows(first, last), shape)
    assert first <= rows.first < rows.last <= last
    numel = lambda a, b: torch.Size(shape[a:b]).numel()  # noqa: E731
    assert numel(rows.first, rows.last) == numel(first, last)


def test_products_and_sums_over_tokens():
    _, product = one_call(lambda a, b: aten.mm.default(a, b), torch.zeros(5, 24), torch.zeros(24, 3))
    left, right = product.all_input_nodes
    total = sums_tokens(product, {left: Rows(1, 2)})
    assert total is not None and dict(total.operands)[right] == Read(Rows(0, 1))
    assert sums_tokens(product, {left: Rows(0, 1)}) is None
    _, summed = one_call(lambda x: aten.sum.dim_IntList(x, [0, 1]), torch.zeros(4, 6, 5))
    assert sums_tokens(summed, {summed.all_input_nodes[0]: Rows(0, 2)}) is not None
    _, partly = one_call(lambda x: aten.sum.dim_IntList(x, [1]), torch.zeros(4, 6, 5))
    assert sums_tokens(partly, {partly.all_input_nodes[0]: Rows(0, 2)}) is None


LINEAR = [
    (lambda g, x: aten.mul.Tensor(g, x), (0,), True),
    (lambda g, x: aten.mul.Tensor(g, x), (0, 1), False),
    (lambda g, x: aten.div.Tensor(g, x), (0,), True),
    (lambda g, x: aten.div.Tensor(x, g), (0,), False),
    (lambda g, x: aten.add.Tensor(g, x), (0,), False),
    (lambda g, x: aten.add.Tensor(g, x), (0, 1), True),
    (lambda g, x: aten.mm.default(g, x), (0,), True),
    (lambda g, x: aten.tanh_backward.default(g, x), (0,), True),
    (lambda g, x: aten.tanh_backward.default(x, g), (0,), False),
    (lambda g, x: aten.maximum.default(g, x), (0, 1), False),
]


@pytest.mark.parametrize("function, tangents, linear", LINEAR)
def test_linear_in_the_gradient(function, tangents, linear):
    gm, node = one_call(function, torch.ones(3, 3), torch.ones(3, 3))
    given = list(gm.graph.find_nodes(op="placeholder"))
    found = explain_nonlinear(node, {given[i] for i in tangents})
    assert (found == "") == linear, found


def test_where_with_zero_is_linear():
    graph = fx.Graph()
    g, mask = graph.placeholder("tangents_1"), graph.placeholder("mask")
    for fill, linear in ((0.0, True), (1.0, False)):
        other = graph.call_function(aten.full.default, ([], fill))
        node = graph.call_function(aten.where.self, (mask, g, other))
        for made in (g, other, node):
            made.meta["val"] = torch.zeros(3)
        assert is_zero(other) == linear
        assert (explain_nonlinear(node, {g}) == "") == linear


@given(st.permutations(range(6)))
def test_sorting_puts_every_node_behind_its_operands(order):
    graph = fx.Graph()
    x = graph.placeholder("x")
    nodes = [x]
    for i in range(6):
        nodes.append(graph.call_function(torch.add, (nodes[i], nodes[i // 2])))
    output = graph.output((nodes[-1],))
    for i in order:
        output.prepend(nodes[i + 1])
    sort_graph(graph)
    graph.lint()
    assert [node.name for node in graph.nodes] == [node.name for node in (*nodes, output)]


def test_outputs_are_added_and_taken_out_with_their_descriptions():
    graph = fx.Graph()
    x = graph.placeholder("x")
    a, b = graph.call_function(torch.neg, (x,)), graph.call_function(torch.abs, (x,))
    output = graph.output((a, x))
    output.meta["desc"] = ["first", "second"]
    gm = fx.GraphModule(torch.nn.Module(), graph)
    add_outputs(output, [b], 1)
    assert output.args[0] == (a, b, x) and output.meta["desc"] == ["first", None, "second"]
    strip_outputs(gm, 1, 1)
    assert output.args[0] == (a, x) and output.meta["desc"] == ["first", "second"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_products_are_added_in_the_sums_dtype(dtype):
    torch.manual_seed(0)
    left, right = torch.randn(7, 9).to(dtype), torch.randn(9, 5).to(dtype)
    total = torch.randn(7, 5, dtype=torch.float64 if dtype is torch.float64 else torch.float32)
    want = total.double() + left.double() @ right.double()
    address = total.data_ptr()
    torch.ops.fxcompress.add_product_(total, left.t().contiguous().t(), right)
    assert total.data_ptr() == address
    torch.testing.assert_close(total.double(), want, rtol=1e-5, atol=1e-5)


def test_the_operators_are_what_they_declare():
    args = (torch.randn(4, 3), torch.randn(4, 6), torch.randn(6, 3))
    torch.library.opcheck(torch.ops.fxcompress.add_product_.default, args)
    torch.library.opcheck(torch.ops.fxcompress.after.default, (torch.randn(4, 1), [torch.randn(2)]))
