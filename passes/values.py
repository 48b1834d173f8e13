"""Static value sets: what a node's elements can be, whatever the data.

`find_values(gm)` runs one forward sweep and returns the nodes about which something is known: a finite arithmetic
progression `{lo, lo+step, …}` of whole numbers, or at least that no element is negative. Only static facts count (dtypes,
constants, operator semantics), never observed values, so that a tensor packed by its value set is bit-exact for every
input. An unknown operator yields no fact. Read-only.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import fx

from fxcompress.passes.ops import op_name


@dataclass(frozen=True, slots=True)
class ValueSet:
    """Elements lie in `{lo + step·k : 0 ≤ k < count}`; `count == 0` means only the sign is known."""

    lo: int = 0
    step: int = 1
    count: int = 0
    nonnegative: bool = False

    @property
    def finite(self) -> bool:
        return self.count > 0

    @property
    def hi(self) -> int:
        return self.lo + self.step * (self.count - 1)

    def __str__(self) -> str:
        if not self.finite:
            return "≥0" if self.nonnegative else ""
        if self.count <= 3:
            return "{" + ",".join(str(self.lo + self.step * k) for k in range(self.count)) + "}"
        return f"[{self.lo},{self.hi}]" + (f"/{self.step}" if self.step != 1 else "")


UNKNOWN = ValueSet()
NONNEGATIVE = ValueSet(nonnegative=True)
Known = dict[fx.Node, ValueSet]
MAX_COUNT = 1 << 31


def of_range(lo: int, hi: int, step: int = 1) -> ValueSet:
    count = (hi - lo) // step + 1
    return ValueSet(lo, step, count, lo >= 0) if 0 < count <= MAX_COUNT else UNKNOWN


def of_points(points: set[int]) -> ValueSet:
    """The tightest progression that contains `points`."""
    lo, hi = min(points), max(points)
    step = math.gcd(*(p - lo for p in points)) or 1
    return of_range(lo, hi, step)


_DTYPE_RANGE = {torch.bool: of_range(0, 1), torch.uint8: of_range(0, 255), torch.int8: of_range(-128, 127)}


def join(a: ValueSet, b: ValueSet) -> ValueSet:
    """What holds of an element that lies in `a` or in `b`."""
    if a.finite and b.finite:
        step = math.gcd(a.step if a.count > 1 else 0, b.step if b.count > 1 else 0, abs(a.lo - b.lo)) or 1
        return of_range(min(a.lo, b.lo), max(a.hi, b.hi), step)
    return NONNEGATIVE if a.nonnegative and b.nonnegative else UNKNOWN


def find_values(gm: fx.GraphModule) -> Known:
    """Facts for every node of `gm` about which something is known."""
    known: Known = {}
    for node in gm.graph.nodes:
        if node.op != "call_function":
            fact = _by_dtype(node)
        else:
            rule = _RULES.get(op_name(node))
            fact = (rule(node, known) if rule is not None else UNKNOWN) or UNKNOWN
            fact = fact if fact.finite else _by_dtype(node) if _by_dtype(node).finite else fact
        fact = _representable(fact, node)
        if fact != UNKNOWN:
            known[node] = fact
    return known


def _by_dtype(node: fx.Node) -> ValueSet:
    val = node.meta.get("val")
    return _DTYPE_RANGE.get(val.dtype, UNKNOWN) if isinstance(val, torch.Tensor) else UNKNOWN


def _representable(fact: ValueSet, node: fx.Node) -> ValueSet:
    """Drop a finite set whose members the node's dtype cannot all hold exactly."""
    val = node.meta.get("val")
    if not fact.finite or not isinstance(val, torch.Tensor):
        return fact
    largest = max(abs(fact.lo), abs(fact.hi))
    if val.dtype.is_floating_point:
        exact = largest <= int(2 / torch.finfo(val.dtype).eps)
    elif val.dtype is torch.bool:
        exact = fact.lo >= 0 and fact.hi <= 1
    elif val.dtype.is_complex:
        exact = False
    else:
        info = torch.iinfo(val.dtype)
        exact = info.min <= fact.lo and fact.hi <= info.max
    return fact if exact else (NONNEGATIVE if fact.nonnegative else UNKNOWN)


def _arg(node: fx.Node, position: int, known: Known) -> ValueSet:
    if position >= len(node.args):
        return UNKNOWN
    return _value(node.args[position], known)


def _value(arg: object, known: Known) -> ValueSet:
    if isinstance(arg, fx.Node):
        return known.get(arg, UNKNOWN)
    if isinstance(arg, (bool, int)) or (isinstance(arg, float) and arg.is_integer()):
        return of_range(int(arg), int(arg))
    return NONNEGATIVE if isinstance(arg, float) and arg >= 0 else UNKNOWN


def _same(node: fx.Node, known: Known) -> ValueSet:
    return _arg(node, 0, known)


def _where(node: fx.Node, known: Known) -> ValueSet:
    return join(_arg(node, 1, known), _arg(node, 2, known))


def _cat(node: fx.Node, known: Known) -> ValueSet:
    parts = node.args[0]
    if not isinstance(parts, (list, tuple)) or not parts:
        return UNKNOWN
    result = _value(parts[0], known)
    for part in parts[1:]:
        result = join(result, _value(part, known))
    return result


def _full(node: fx.Node, known: Known) -> ValueSet:
    return _arg(node, 1, known)


def _constant(value: int) -> Callable[[fx.Node, Known], ValueSet]:
    return lambda node, known: of_range(value, value)


def _signs(node: fx.Node, known: Known) -> ValueSet:
    return of_range(-1, 1)


def _nonnegative(node: fx.Node, known: Known) -> ValueSet:
    return NONNEGATIVE


def _relu(node: fx.Node, known: Known) -> ValueSet:
    a = _arg(node, 0, known)
    if a.finite and a.hi >= 0:
        return of_points({max(a.lo + a.step * k, 0) for k in range(a.count)}) if a.count <= 64 else of_range(0, a.hi)
    return NONNEGATIVE


def _neg(node: fx.Node, known: Known) -> ValueSet:
    a = _arg(node, 0, known)
    return of_range(-a.hi, -a.lo, a.step) if a.finite else UNKNOWN


def _mul(node: fx.Node, known: Known) -> ValueSet:
    a, b = _arg(node, 0, known), _arg(node, 1, known)
    if a.finite and b.finite:
        if a.count * b.count <= 64:
            return of_points({(a.lo + a.step * i) * (b.lo + b.step * j) for i in range(a.count) for j in range(b.count)})
        ends = [x * y for x in (a.lo, a.hi) for y in (b.lo, b.hi)]
        return of_range(min(ends), max(ends))
    same = len(node.args) > 1 and node.args[0] is node.args[1]
    return NONNEGATIVE if same or (a.nonnegative and b.nonnegative) else UNKNOWN


def _add(node: fx.Node, known: Known) -> ValueSet:
    return _sum_of(_arg(node, 0, known), _arg(node, 1, known)) if not node.kwargs.get("alpha") else UNKNOWN


def _sub(node: fx.Node, known: Known) -> ValueSet:
    b = _arg(node, 1, known)
    if node.kwargs.get("alpha") or not b.finite:
        return UNKNOWN
    return _sum_of(_arg(node, 0, known), ValueSet(-b.hi, b.step, b.count, b.hi <= 0))


def _sum_of(a: ValueSet, b: ValueSet) -> ValueSet:
    if a.finite and b.finite:
        step = math.gcd(a.step if a.count > 1 else 0, b.step if b.count > 1 else 0) or 1
        return of_range(a.lo + b.lo, a.hi + b.hi, step)
    return NONNEGATIVE if a.nonnegative and b.nonnegative else UNKNOWN


def _clamp(node: fx.Node, known: Known) -> ValueSet:
    low = node.args[1] if len(node.args) > 1 else node.kwargs.get("min")
    return NONNEGATIVE if isinstance(low, (int, float)) and low >= 0 else UNKNOWN


def _product_sum(node: fx.Node, known: Known) -> ValueSet:
    """A contraction of two whole-number operands in fp32 or wider, small enough that every partial sum is exact."""
    val = node.meta.get("val")
    offset = 1 if op_name(node) == "addmm" else 0
    a, b = _arg(node, offset, known), _arg(node, offset + 1, known)
    if not (a.finite and b.finite and isinstance(val, torch.Tensor) and val.dtype in (torch.float32, torch.float64)):
        return UNKNOWN
    terms = _contracted(node, offset)
    # cuDNN may choose a transform algorithm (Winograd, FFT), whose results are not whole numbers.
    if terms is None or (op_name(node) == "convolution" and val.device.type != "cpu"):
        return UNKNOWN
    bound = terms * max(abs(a.lo), abs(a.hi)) * max(abs(b.lo), abs(b.hi))
    return of_range(-bound, bound) if bound < 1 << 24 else UNKNOWN


def _contracted(node: fx.Node, offset: int) -> int | None:
    """How many products one output element sums; None if unknown or if an unanalysed bias is added."""
    right = node.args[offset + 1]
    assert isinstance(right, fx.Node)
    shape = right.meta["val"].shape
    if op_name(node) == "convolution":
        plain = node.args[2] is None and not node.args[6]
        sizes = shape[1:]
    else:
        plain = offset == 0
        sizes = shape[-2:-1]
    return math.prod(sizes) if plain and all(isinstance(s, int) for s in sizes) else None


def _indices(axis: int, default: int | None = None) -> Callable[[fx.Node, Known], ValueSet]:
    """An index along the dimension given as argument `axis` (else `default`); along all of them if that is None."""

    def rule(node: fx.Node, known: Known) -> ValueSet:
        source = node.args[0]
        assert isinstance(source, fx.Node)
        shape = source.meta["val"].shape
        dim = node.args[axis] if len(node.args) > axis else default
        size = math.prod(shape) if dim is None else shape[dim] if isinstance(dim, int) and shape else 1
        return of_range(0, size - 1) if isinstance(size, int) else UNKNOWN

    return rule


def _getitem(node: fx.Node, known: Known) -> ValueSet:
    source, index = node.args
    if not isinstance(source, fx.Node) or not isinstance(index, int):
        return UNKNOWN
    rule = _TUPLE_RULES.get((op_name(source), index))
    return rule(source, known) if rule is not None else UNKNOWN


def _window(node: fx.Node, known: Known) -> ValueSet:
    kernel = node.args[1]
    return of_range(0, math.prod(kernel) - 1) if isinstance(kernel, (list, tuple)) else UNKNOWN


def _plane(node: fx.Node, known: Known) -> ValueSet:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    sizes = source.meta["val"].shape[-2:]
    return of_range(0, math.prod(sizes) - 1) if all(isinstance(s, int) for s in sizes) else UNKNOWN


def _arange(node: fx.Node, known: Known) -> ValueSet:
    numbers = [a for a in node.args if isinstance(a, int)]
    if len(numbers) != len(node.args) or not numbers or node.kwargs.get("step", 1) != 1:
        return UNKNOWN
    start, end = (0, numbers[0]) if len(numbers) == 1 else (numbers[0], numbers[1])
    return of_range(start, end - 1) if len(numbers) < 3 and end > start else UNKNOWN


_SAME = (
    "view reshape _unsafe_view permute transpose t expand clone contiguous alias detach squeeze unsqueeze select slice "
    "convert_element_type _to_copy flip repeat gather index index_select as_strided split unbind lift_fresh_copy"
)
_NONNEGATIVE = "abs exp sigmoid sqrt rsqrt square softmax _softmax softplus rand"
_RULES: dict[str, Callable[[fx.Node, Known], ValueSet]] = {
    **dict.fromkeys(_SAME.split(), _same),
    **dict.fromkeys(_NONNEGATIVE.split(), _nonnegative),
    **dict.fromkeys(("mm", "bmm", "addmm", "convolution"), _product_sum),
    **dict.fromkeys(("argmax", "argmin"), _indices(1)),
    "where": _where,
    "cat": _cat,
    "full": _full,
    "full_like": _full,
    "scalar_tensor": _same,
    "zeros": _constant(0),
    "zeros_like": _constant(0),
    "ones": _constant(1),
    "ones_like": _constant(1),
    "relu": _relu,
    "clamp": _clamp,
    "clamp_min": _clamp,
    "hardtanh": _clamp,
    "sign": _signs,
    "neg": _neg,
    "mul": _mul,
    "add": _add,
    "sub": _sub,
    "arange": _arange,
    "getitem": _getitem,
}
_TUPLE_RULES: dict[tuple[str, int], Callable[[fx.Node, Known], ValueSet]] = {
    ("max_pool2d_with_indices", 0): _same,
    ("max_pool2d_with_indices", 1): _plane,
    ("_low_memory_max_pool_with_offsets", 0): _same,
    ("_low_memory_max_pool_with_offsets", 1): _window,
    ("max", 1): _indices(1),
    ("min", 1): _indices(1),
    ("sort", 1): _indices(1, -1),
    ("topk", 1): _indices(2, -1),
    ("split", 0): _same,
}
