"""Static value sets: what a node's elements can be, whatever the data.

`find_values(gm)` runs one forward sweep and returns the nodes about which something is known: a finite arithmetic
progression `{lo, lo+step, …}` of whole numbers, or at least that no element is negative. Only static facts count
(dtypes, constants, operator semantics), never observed values, so that a tensor packed by its value set is bit-exact
for every input. An unknown operator yields no fact. Read-only.
"""

import math
from collections.abc import Callable

import torch
from torch import fx

from fxcompress.passes.ops import op_name
from fxcompress.passes.value_products import contracted, sums_products, together
from fxcompress.passes.value_sets import NONNEGATIVE, UNKNOWN, ValueSet, join, of_points, of_range, product_of, sum_of

__all__ = ["Known", "ValueSet", "find_values"]
Known = dict[fx.Node, ValueSet]
_DTYPE_RANGE = {torch.bool: of_range(0, 1), torch.uint8: of_range(0, 255), torch.int8: of_range(-128, 127)}


def find_values(gm: fx.GraphModule) -> Known:
    """Facts for every node of `gm` about which something is known."""
    known: Known = {}
    for node in gm.graph.nodes:
        if node.op != "call_function":
            fact = _by_dtype(node)
        else:
            rule = _RULES.get(op_name(node))
            fact = _representable(rule(node, known) if rule is not None else UNKNOWN, node)
            fact = fact if fact.finite or not _by_dtype(node).finite else _by_dtype(node)
        if fact != UNKNOWN:
            known[node] = fact
    return known


def _by_dtype(node: fx.Node) -> ValueSet:
    val = node.meta.get("val")
    return _DTYPE_RANGE.get(val.dtype, UNKNOWN) if isinstance(val, torch.Tensor) else UNKNOWN


def _representable(fact: ValueSet, node: fx.Node) -> ValueSet:
    """Drop a finite set whose members the node's dtype cannot all hold exactly, and signs that overflow may turn."""
    val = node.meta.get("val")
    if not isinstance(val, torch.Tensor):
        return fact
    if not fact.finite:
        return fact if val.dtype.is_floating_point else UNKNOWN
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
    if exact:
        return fact
    return NONNEGATIVE if fact.nonnegative and val.dtype.is_floating_point else UNKNOWN


def _no_minus_zero(fact: ValueSet, node: fx.Node) -> ValueSet:
    """Drop a set with a zero that floating point arithmetic may have made of it as -0.0, which no set contains."""
    val = node.meta.get("val")
    exact = isinstance(val, torch.Tensor) and not val.dtype.is_floating_point
    return fact if exact or 0 not in fact else UNKNOWN


def _arg(node: fx.Node, position: int, known: Known) -> ValueSet:
    if position >= len(node.args):
        return UNKNOWN
    return _value(node.args[position], known)


def _value(arg: object, known: Known) -> ValueSet:
    if isinstance(arg, fx.Node):
        return known.get(arg, UNKNOWN)
    if isinstance(arg, float) and arg == 0 and math.copysign(1, arg) < 0:
        return NONNEGATIVE
    if isinstance(arg, (bool, int)) or (isinstance(arg, float) and arg.is_integer()):
        return of_range(int(arg), int(arg))
    return NONNEGATIVE if isinstance(arg, float) and arg >= 0 else UNKNOWN


def _same(node: fx.Node, known: Known) -> ValueSet:
    # view(x, dtype) keeps the bits and not the values.
    return UNKNOWN if node.target is torch.ops.aten.view.dtype else _arg(node, 0, known)


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
    val = node.meta.get("val")
    return UNKNOWN if isinstance(val, torch.Tensor) and val.is_complex() else of_range(-1, 1)


def _nonnegative(node: fx.Node, known: Known) -> ValueSet:
    return NONNEGATIVE


def _relu(node: fx.Node, known: Known) -> ValueSet:
    a = _arg(node, 0, known)
    if a.finite and a.hi >= 0:
        return of_points({max(a.lo + a.step * k, 0) for k in range(a.count)}) if a.count <= 64 else of_range(0, a.hi)
    return NONNEGATIVE


def _neg(node: fx.Node, known: Known) -> ValueSet:
    a = _arg(node, 0, known)
    return _no_minus_zero(of_range(-a.hi, -a.lo, a.step), node) if a.finite else UNKNOWN


def _mul(node: fx.Node, known: Known) -> ValueSet:
    a, b = _arg(node, 0, known), _arg(node, 1, known)
    if a.finite and b.finite:
        product = product_of(a, b)
        return product if a.nonnegative and b.nonnegative else _no_minus_zero(product, node)
    same = len(node.args) > 1 and node.args[0] is node.args[1]
    return NONNEGATIVE if same or (a.nonnegative and b.nonnegative) else UNKNOWN


def _add(node: fx.Node, known: Known) -> ValueSet:
    return sum_of(_arg(node, 0, known), _arg(node, 1, known)) if "alpha" not in node.kwargs else UNKNOWN


def _sub(node: fx.Node, known: Known) -> ValueSet:
    b = _arg(node, 1, known)
    if "alpha" in node.kwargs or not b.finite:
        return UNKNOWN
    return sum_of(_arg(node, 0, known), ValueSet(-b.hi, b.step, b.count, b.hi <= 0))


def _clamp(node: fx.Node, known: Known) -> ValueSet:
    low = node.args[1] if len(node.args) > 1 else node.kwargs.get("min")
    high = node.args[2] if len(node.args) > 2 else node.kwargs.get("max")
    # A maximum below the minimum wins.
    ends = (low, math.inf if high is None else high)
    return NONNEGATIVE if all(isinstance(end, (int, float)) and end >= 0 for end in ends) else UNKNOWN


def _product_sum(node: fx.Node, known: Known) -> ValueSet:
    """A contraction of two whole-number operands in fp32 or wider, small enough that every partial sum is exact.

    Operands must be exact in bfloat16, in which kernels may multiply if the user allows it.
    """
    val = node.meta.get("val")
    offset = 1 if op_name(node) == "addmm" else 0
    a, b = _arg(node, offset, known), _arg(node, offset + 1, known)
    if not (a.finite and b.finite and isinstance(val, torch.Tensor) and val.dtype in (torch.float32, torch.float64)):
        return UNKNOWN
    terms = contracted(node, offset)
    largest = [max(abs(x.lo), abs(x.hi)) for x in (a, b)]
    if terms is None or max(largest) > 256:
        return UNKNOWN
    if op_name(node) == "convolution" and not sums_products(node):
        return UNKNOWN
    # A sum of products that are all -0.0 may be -0.0.
    zero_has_a_sign = (0 in a or 0 in b) and not (a.nonnegative and b.nonnegative)
    if zero_has_a_sign or terms * math.prod(largest) >= 1 << 24:
        return UNKNOWN
    return _sums(product_of(a, b), terms, together(node, terms))


def _sums(products: ValueSet, terms: int, unit: int) -> ValueSet:
    """Sums of up to `terms` products; their number is a multiple of `unit`, from one unit on."""
    least, most = min(unit * products.lo, terms * products.lo), max(unit * products.hi, terms * products.hi)
    step = products.step if products.count > 1 else 0
    if unit < terms:
        step = math.gcd(step, unit * products.lo)
    return of_range(least, most, step or 1)


def _indices(axis: int, default: int | None = None) -> Callable[[fx.Node, Known], ValueSet]:
    """An index along the dimension given as argument `axis` (else `default`); along all of them if that is None."""

    def rule(node: fx.Node, known: Known) -> ValueSet:
        source = node.args[0]
        assert isinstance(source, fx.Node)
        shape = source.meta["val"].shape
        dim = node.args[axis] if len(node.args) > axis else node.kwargs.get("dim", default)
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
    return of_range(0, math.prod(kernel) - 1) if isinstance(kernel, (list, tuple)) and len(kernel) > 1 else UNKNOWN


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
_NONNEGATIVE = "abs exp sigmoid sqrt square softmax _softmax softplus rand"
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
    "sgn": _signs,
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
