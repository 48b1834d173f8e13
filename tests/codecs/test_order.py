"""Memory order: round trips restore sizes and strides as views; what cannot be proved dense is refused."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from fxcompress.codecs.order import from_rows, memory_order, to_rows


@st.composite
def dense(draw: st.DrawFn) -> torch.Tensor:
    sizes = draw(st.lists(st.integers(1, 4), max_size=5))
    order = draw(st.permutations(range(len(sizes))))
    x = torch.randn([sizes[dim] for dim in order])
    return x.permute([order.index(dim) for dim in range(len(sizes))])


@settings(deadline=None, max_examples=200)
@given(dense())
def test_any_permutation_of_a_contiguous_tensor(x: torch.Tensor) -> None:
    order = memory_order(x)
    assert order is not None and order.lead == () and order.cols == x.numel()
    rows = to_rows(x, order)
    assert rows.shape == (x.numel(),) and rows.is_contiguous() and rows.data_ptr() == x.data_ptr()
    back = from_rows(rows, order)
    assert torch.equal(back, x) and back.stride() == x.stride()


def test_channels_last() -> None:
    x = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    order = memory_order(x)
    assert order is not None and order.dims == (0, 2, 3, 1)
    assert from_rows(to_rows(x, order), order).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    "x",
    [
        torch.randn(4, 1).expand(4, 6),
        torch.randn(8, 8)[:, :4],
        torch.randn(8)[::2],
        torch.randn(10).as_strided((3, 4), (2, 1)),
    ],
    ids=["expanded", "sliced", "strided", "overlapping"],
)
def test_what_is_not_dense_is_refused(x: torch.Tensor) -> None:
    assert memory_order(x) is None


def test_a_dense_part_of_a_larger_storage_is_dense() -> None:
    assert memory_order(torch.randn(8, 8)[2:5]) is not None


def symbolic(x: torch.Tensor, *dims: int) -> tuple[torch.Tensor, ShapeEnv]:
    env = ShapeEnv()
    sizes = [DimDynamic.DYNAMIC if dim in dims else DimDynamic.STATIC for dim in range(x.dim())]
    context = StatelessSymbolicContext(dynamic_sizes=sizes)
    return FakeTensorMode(shape_env=env).from_tensor(x, symbolic_context=context), env


def test_symbolic_sizes_lead_and_install_no_guard() -> None:
    x, env = symbolic(torch.randn(3, 5, 7, 8), 0, 1)
    order = memory_order(x)
    assert order is not None and order.dims == (0, 1, 2, 3)
    assert order.tail == (7, 8) and len(order.lead) == 2
    assert not env.guards
    with x.fake_mode:  # type: ignore[attr-defined]
        back = from_rows(to_rows(x, order), order)
    assert back.shape == x.shape and back.stride() == x.stride() and not env.guards


def test_static_sizes_before_a_symbolic_one_stay_in_lead() -> None:
    x, _ = symbolic(torch.randn(3, 5, 8), 1)
    order = memory_order(x)
    assert order is not None and order.lead[0] == 3 and order.tail == (8,)


def test_a_symbolic_fastest_dimension_leaves_single_elements() -> None:
    x, _ = symbolic(torch.randn(3, 5), 1)
    order = memory_order(x)
    assert order is not None and order.cols == 1


def test_a_transposed_tensor_with_a_symbolic_size() -> None:
    x, env = symbolic(torch.randn(6, 4, 8).transpose(1, 2), 0)
    order = memory_order(x)
    assert order is not None and order.dims == (0, 2, 1) and order.tail == (4, 8) and not env.guards


@settings(deadline=None, max_examples=200)
@given(dense(), st.integers(1, 200))
def test_rows_that_run_on_hold_all_elements_and_then_zeros(x: torch.Tensor, row: int) -> None:
    order = memory_order(x)
    assert order is not None
    order = order.filling(row)
    rows = to_rows(x, order)
    assert rows.shape == (*order.lead, row) and order.cols == row
    memory = torch.as_strided(x, (x.numel(),), (1,))
    assert torch.equal(rows.flatten()[: x.numel()], memory) and not rows.flatten()[x.numel() :].any()
    back = from_rows(rows, order)
    assert torch.equal(back, x) and back.stride() == x.stride()


@pytest.mark.parametrize("row", [12, 24, 40, 60])
def test_rows_end_within_a_dimension_where_static_sizes_end_with_one(row: int) -> None:
    x = torch.randn(10, 3, 4).permute(2, 0, 1)
    order = memory_order(x)
    assert order is not None
    ended = order.ended_at(row)
    assert ended is not None
    rows = to_rows(x, ended)
    assert rows.shape == (120 // row, row) and torch.equal(rows.flatten(), torch.as_strided(x, (120,), (1,)))
    back = from_rows(rows, ended)
    assert torch.equal(back, x) and back.stride() == x.stride()
    assert order.ended_at(16) is None


def test_rows_that_run_on_across_symbolic_sizes_install_no_guard() -> None:
    x, env = symbolic(torch.randn(3, 5, 17, 19), 0, 2, 3)
    order = memory_order(x)
    assert order is not None
    order = order.filling(128)
    with x.fake_mode:  # type: ignore[attr-defined]
        traced = make_fx(lambda x: (rows := to_rows(x, order), from_rows(rows, order)), tracing_mode="symbolic")(x)
    (output,) = traced.graph.find_nodes(op="output")
    rows, back = (node.meta["val"] for node in output.args[0])
    assert rows.shape[1] == 128 and back.shape == x.shape and back.stride() == x.stride()
    symbols = sorted(set().union(*(guard.expr.free_symbols for guard in env.guards)), key=str)
    for sizes in ((2, 2, 2), (2, 9, 9), (8, 16, 16), (3, 64, 50), (1000, 31, 2)):
        held = dict(zip(symbols, sizes, strict=True))
        assert all(bool(guard.expr.subs(held)) for guard in env.guards), sizes
