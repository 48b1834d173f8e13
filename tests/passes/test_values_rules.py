"""Each value-set rule against brute force: the real operator on random members of its inputs' sets stays in its set."""

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from fxcompress.passes.values import _RULES, ValueSet, find_values

aten = torch.ops.aten
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
INTEGERS = (torch.bool, torch.uint8, torch.int8, torch.int32, torch.int64)
SHAPE = (5, 6)


@dataclass(frozen=True)
class Members:
    """A tensor operand with elements of `points`, a progression."""

    points: tuple[int, ...]
    dtype: torch.dtype
    shape: tuple[int, ...] = SHAPE

    def real(self, generator: torch.Generator) -> torch.Tensor:
        index = torch.randint(0, len(self.points), self.shape, generator=generator)
        return torch.tensor(self.points, dtype=torch.int64)[index].to(self.dtype)

    def fact(self) -> ValueSet:
        """The tightest progression."""
        gaps = {b - a for a, b in zip(self.points, self.points[1:], strict=False)} or {1}
        assert len(gaps) == 1, "give a progression"
        return ValueSet(self.points[0], gaps.pop(), len(self.points), self.points[0] >= 0)


def spread(lo: int, count: int, step: int = 1) -> tuple[int, ...]:
    return tuple(range(lo, lo + step * count, step))


def check(op: Callable[..., Any], *args: object, seed: int = 0, **kwargs: Any) -> list[ValueSet]:
    """Build a graph of `op` on `args`, with facts for its `Members`, and compare facts and real results."""
    generator = torch.Generator().manual_seed(seed)
    graph = fx.Graph()
    facts: dict[fx.Node, ValueSet] = {}
    reals: dict[fx.Node, torch.Tensor] = {}

    def place(arg: object) -> object:
        if not isinstance(arg, Members):
            return arg
        node = graph.call_function(aten.alias.default, (graph.placeholder(f"x{len(facts)}"),))
        facts[node], reals[node] = arg.fact(), arg.real(generator)
        return node

    is_operand = {"is_leaf": lambda arg: isinstance(arg, Members)}
    placed = pytree.tree_map(place, args, **is_operand)
    call = graph.call_function(op, placed, kwargs)
    real = op(*fx.map_arg(placed, reals.__getitem__), **kwargs)
    results = [(call, real)]
    if isinstance(real, (tuple, list)):
        for i, item in enumerate(real):
            results.append((graph.call_function(operator.getitem, (call, i)), item))
    graph.output(call)
    mode = FakeTensorMode()
    for node, value in (*reals.items(), *results):
        node.meta["val"] = pytree.tree_map_only(torch.Tensor, mode.from_tensor, value)
    known = with_facts(graph, facts)
    for node, value in results:
        if isinstance(value, torch.Tensor) and node in known:
            assert_member(known[node], value, str(node))
    return [known.get(node, ValueSet()) for node, _ in results]


def with_facts(graph: fx.Graph, facts: dict[fx.Node, ValueSet]) -> dict[fx.Node, ValueSet]:
    """`find_values` with given facts for operands."""
    original = _RULES["alias"]
    _RULES["alias"] = lambda node, known: facts.get(node) or original(node, known)
    try:
        return find_values(fx.GraphModule(torch.nn.Module(), graph))
    finally:
        _RULES["alias"] = original


def assert_member(fact: ValueSet, value: torch.Tensor, name: str) -> None:
    wide = value.double() if value.is_floating_point() else value.long()
    if fact.nonnegative:
        assert not (wide < 0).any(), f"{name}: {fact}, found {wide.min()}"
    if fact.finite:
        inside = (wide >= fact.lo) & (wide <= fact.hi) & ((wide - fact.lo) % fact.step == 0)
        assert inside.all(), f"{name}: {fact}, found {set(wide[~inside].tolist())}"
        assert not (value.is_floating_point() and (value.signbit() & (value == 0)).any()), f"{name}: a -0.0 in {fact}"


def progressions(dtype: torch.dtype, size: int = 12) -> st.SearchStrategy[tuple[int, ...]]:
    """Sets whose members the dtype holds exactly."""
    if dtype is torch.bool:
        return st.sampled_from([(0, 1), (0,), (1,)])
    low, high = (-100, 100) if dtype.is_floating_point else (torch.iinfo(dtype).min, torch.iinfo(dtype).max)

    @st.composite
    def build(draw: st.DrawFn) -> tuple[int, ...]:
        count, step = draw(st.integers(1, size)), draw(st.integers(1, 3))
        reach = step * (count - 1)
        ends = st.sampled_from([low, high - reach, 0, -1]) | st.integers(low, high - reach)
        return spread(max(low, min(draw(ends), high - reach)), count, step)

    return build()


@st.composite
def operands(draw: st.DrawFn, dtypes: tuple[torch.dtype, ...] = FLOATS + INTEGERS, number: int = 2) -> list[Members]:
    dtype = draw(st.sampled_from(dtypes))
    return [Members(draw(progressions(dtype)), dtype) for _ in range(number)]


SIGNED = tuple(dtype for dtype in FLOATS + INTEGERS if dtype is not torch.bool)
SEARCH = settings(deadline=None, max_examples=60)


@pytest.mark.parametrize("op", [aten.add.Tensor, aten.mul.Tensor], ids=str)
@SEARCH
@given(operands(), st.integers(0, 99))
def test_sums_and_products(op: Callable[..., Any], both: list[Members], seed: int) -> None:
    check(op, *both, seed=seed)


@SEARCH
@given(operands(SIGNED), st.integers(0, 99))
def test_differences(both: list[Members], seed: int) -> None:
    check(aten.sub.Tensor, *both, seed=seed)


@SEARCH
@given(operands(SIGNED, 1), st.sampled_from([aten.neg.default, aten.relu.default, aten.abs.default, aten.sign.default]))
def test_unary(operand: list[Members], op: Callable[..., Any]) -> None:
    check(op, *operand)


@SEARCH
@given(operands((torch.bool,), 1), operands(SIGNED), st.integers(0, 99))
def test_where(condition: list[Members], both: list[Members], seed: int) -> None:
    check(aten.where.self, *condition, *both, seed=seed)


@SEARCH
@given(operands(), st.integers(0, 99))
def test_cat(both: list[Members], seed: int) -> None:
    check(aten.cat.default, both, seed=seed)


def test_joined_sets_are_tight() -> None:
    both = Members((-1, 1), torch.float32), Members((3, 7), torch.float32)
    assert check(aten.cat.default, list(both)) == [ValueSet(-1, 2, 5)]
    assert check(aten.where.self, Members((0, 1), torch.bool), *both) == [ValueSet(-1, 2, 5)]


@SEARCH
@given(operands(number=1), st.sampled_from(FLOATS + INTEGERS))
def test_casts(operand: list[Members], dtype: torch.dtype) -> None:
    check(aten._to_copy.default, *operand, dtype=dtype)
    if not dtype.is_floating_point:
        check(torch.ops.prims.convert_element_type.default, *operand, dtype)


@SEARCH
@given(operands(number=1), st.sampled_from([torch.int32, torch.uint8, torch.float32, torch.int64]))
def test_reinterpreted_bits_are_other_values(operand: list[Members], dtype: torch.dtype) -> None:
    even = Members(operand[0].points, operand[0].dtype, (4, 8))
    check(aten.view.dtype, even, dtype)


@SEARCH
@given(operands(SIGNED, 1), st.integers(-5, 5), st.none() | st.integers(-5, 5))
def test_clamps(operand: list[Members], low: int, high: int | None) -> None:
    check(aten.clamp.default, *operand, low, high)
    check(aten.clamp_min.default, *operand, low)


@SEARCH
@given(
    st.sampled_from([(-1, 1), (0, 1), (-1, 0, 1), (-3, -1, 1), (1,)]),
    st.sampled_from([(-1, 1), (0, 1), (2, 4)]),
    st.integers(1, 20),
)
def test_matrix_products(a: tuple[int, ...], b: tuple[int, ...], inner: int) -> None:
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        check(aten.mm.default, Members(a, dtype, (7, inner)), Members(b, dtype, (inner, 9)))
        check(aten.bmm.default, Members(a, dtype, (2, 7, inner)), Members(b, dtype, (2, inner, 3)))


def test_products_of_signs_are_known() -> None:
    (fact,) = check(aten.mm.default, Members((-1, 1), torch.float32, (7, 20)), Members((-1, 1), torch.float32, (20, 9)))
    assert (fact.lo, fact.hi, fact.step) == (-20, 20, 2)


@pytest.mark.parametrize("padding", [0, 1])
def test_convolutions_of_signs_over_even_channels_are_even(padding: int) -> None:
    """Padding leaves out all channels of a tap at once."""
    x, weight = Members((-1, 1), torch.float64, (2, 4, 5, 5)), Members((-1, 1), torch.float64, (3, 4, 3, 3))
    sizes = ([1, 1], [padding] * 2, [1, 1], False, [0, 0], 1)
    (fact,) = check(aten.convolution.default, x, weight, None, *sizes)
    assert (fact.lo, fact.hi, fact.step) == (-36, 36, 2)


@SEARCH
@given(st.sampled_from([1, 3]), st.integers(0, 3), st.integers(1, 2), st.integers(1, 2), st.sampled_from([1, 3]))
def test_convolutions_of_signs(kernel: int, padding: int, stride: int, dilation: int, groups: int) -> None:
    for dtype in (torch.float32, torch.float64):
        x, weight = Members((-1, 1), dtype, (2, 3, 7, 8)), Members((-1, 1), dtype, (6, 3 // groups, kernel, kernel))
        sizes = ([stride] * 2, [padding] * 2, [dilation] * 2, False, [0, 0], groups)
        check(aten.convolution.default, x, weight, None, *sizes)


def test_convolutions_without_onednn_are_not_whole_numbers() -> None:
    """NNPACK computes 3x3 convolutions by a transform: no set of whole numbers may be claimed of them."""
    x, weight = Members((-1, 1), torch.float32, (16, 32, 20, 20)), Members((-1, 1), torch.float32, (32, 32, 3, 3))
    with torch.backends.mkldnn.flags(enabled=False):
        check(aten.convolution.default, x, weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1)


@SEARCH
@given(st.integers(1, 9), st.integers(1, 9), st.sampled_from([0, 1, -1]), st.booleans())
def test_indices(rows: int, cols: int, dim: int, keep: bool) -> None:
    x = Members(spread(-50, 100), torch.float32, (rows, cols))
    for op in (aten.argmax.default, aten.argmin.default):
        check(op, x)
        check(op, x, dim, keep)
        check(op, x, dim=dim)
    check(aten.sort.default, x, dim)
    check(aten.sort.default, x)
    check(aten.sort.stable, x, stable=True, dim=dim)
    check(aten.topk.default, x, 1, dim)
    check(aten.max.dim, x, dim)
    check(aten.min.dim, x, dim, keep)


@SEARCH
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 2), st.booleans())
def test_pooling(kernel: int, stride: int, dilation: int, ceil: bool) -> None:
    x = Members(spread(-50, 100), torch.float32, (2, 3, 8, 9))
    padding = kernel // 2
    _, _, index = check(
        aten.max_pool2d_with_indices.default, x, [kernel] * 2, [stride] * 2, [padding] * 2, [dilation] * 2, ceil
    )
    assert index.finite


def test_pooling_offsets() -> None:
    import torch._inductor.inductor_prims

    x = Members(spread(-50, 100), torch.float32, (2, 3, 8, 9))
    op = torch.ops.prims._low_memory_max_pool_with_offsets.default
    _, values, offsets = check(op, x, [3, 2], [2, 2], [1, 1], [1, 1], False)
    assert (offsets.lo, offsets.hi) == (0, 5) and values.finite


def test_signs_of_everything() -> None:
    x = torch.tensor([float("nan"), -0.0, 0.0, float("inf"), -float("inf"), 3.0, -1e-40] * 9)
    for dtype in FLOATS:
        for function in (torch.sign, torch.sgn):
            assert_member(ValueSet(-1, 1, 3), function(x.to(dtype)), "sign")
    found = make_fx(lambda x, z: (x.sgn(), z.sgn()))(torch.randn(3), torch.randn(3, dtype=torch.complex64))
    real, turned = found.graph.find_nodes(op="call_function", target=aten.sgn.default)
    facts = find_values(found)
    assert facts[real] == ValueSet(-1, 1, 3) and turned not in facts, "of complex numbers, they lie on a circle"


@pytest.mark.parametrize("fill", [0, 1, -3, 2.0, -0.0, 0.5, float("nan"), float("-inf"), True, 300], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.uint8, torch.bfloat16], ids=str)
def test_constants(fill: float, dtype: torch.dtype) -> None:
    if not dtype.is_floating_point and (
        abs(fill) not in range(301) or (dtype is torch.uint8 and fill not in range(256))
    ):
        return
    check(aten.full.default, [3, 4], fill, dtype=dtype)
    check(aten.scalar_tensor.default, fill, dtype=dtype)
    check(aten.full_like.default, Members((0, 1), torch.float32), fill, dtype=dtype)


@pytest.mark.parametrize("fill", [-0.0, 0.5, -1, 2], ids=str)
def test_scalars(fill: float) -> None:
    x, condition = Members((-2, 0, 2), torch.float32), Members((0, 1), torch.bool)
    check(aten.where.ScalarSelf, condition, fill, x)
    check(aten.where.ScalarOther, condition, x, fill)
    check(aten.mul.Tensor, x, fill)
    check(aten.add.Tensor, x, fill)
    check(aten.add.Tensor, x, x, alpha=0)
    check(aten.sub.Tensor, x, x, alpha=3)


@pytest.mark.parametrize("args", [(7,), (3, 9), (-4, 2), (0,)], ids=str)
def test_ranges(args: tuple[int, ...]) -> None:
    op = aten.arange.default if len(args) == 1 else aten.arange.start
    check(op, *args)
    check(op, *args, dtype=torch.float32)


MOVERS: dict[str, tuple[Callable[..., Any], tuple[object, ...]]] = {
    "view": (aten.view.default, ([6, 5],)),
    "permute": (aten.permute.default, ([1, 0],)),
    "expand": (aten.expand.default, ([2, 5, 6],)),
    "slice": (aten.slice.Tensor, (1, 1, 5, 2)),
    "select": (aten.select.int, (0, 3)),
    "split": (aten.split.Tensor, (2,)),
    "unbind": (aten.unbind.int, ()),
    "flip": (aten.flip.default, ([0],)),
    "repeat": (aten.repeat.default, ([2, 1],)),
    "as_strided": (aten.as_strided.default, ([2, 2], [1, 3], 2)),
    "clone": (aten.clone.default, ()),
    "unsqueeze": (aten.unsqueeze.default, (0,)),
}


@pytest.mark.parametrize("name", MOVERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.int32], ids=str)
def test_moves(name: str, dtype: torch.dtype) -> None:
    op, args = MOVERS[name]
    facts = check(op, Members((-3, -1, 1), dtype), *args)
    assert facts[0].finite and facts[0].step == 2
