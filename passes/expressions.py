"""Pointwise operators as Inductor's Triton backend writes them, so that a kernel of ours computes the same bits.

Every value is fp32 in registers, whatever its tensor's dtype: Inductor rounds where it stores and nowhere else, so that
a cast is no step. Division is Triton's, which divides two units in the last place off, and `libdevice` computes what
Inductor has it compute. Run in torch 2.13, read in 2.11: `torch._inductor.codegen.triton.TritonOverrides`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import torch
from torch import fx

from fxcompress.compat import OpOverload
from fxcompress.passes.ops import op_name

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
"""Dtypes of what a chain reads and makes."""
_FORMS: Mapping[str, str] = MappingProxyType(
    {
        "add": "{0} + {1}",
        "sub": "{0} - {1}",
        "mul": "{0} * {1}",
        "neg": "-{0}",
        "exp": "libdevice.exp({0})",
        "erf": "libdevice.erf({0})",
        "tanh": "libdevice.tanh({0})",
        "sigmoid": "tl.sigmoid({0})",
        "relu": "tl.where(0.0 > {0}, 0.0, {0})",
        "clamp_min": "tl.where({0} < {1}, {1}, {0})",
        "clamp_max": "tl.where({0} > {1}, {1}, {0})",
        "convert_element_type": "{0}",
    }
)
PREDICATES: Mapping[str, str] = MappingProxyType({"le": "<=", "lt": "<", "ge": ">=", "gt": ">", "eq": "==", "ne": "!="})
"""Comparisons with a number."""


def expression_of(node: fx.Node, names: Callable[[fx.Node], str]) -> str | None:
    """A node's value in terms of its arguments' names; None if it is no operator of a chain."""
    if node.op != "call_function" or node.kwargs or not isinstance(node.target, OpOverload):
        return None
    name, arguments = op_name(node), node.args
    if name == "convert_element_type":
        if arguments[1] not in FLOATS:
            return None
        arguments = arguments[:1]
    if name == "pow":
        return _power(arguments, names)
    if name == "div":
        return _quotient(arguments, names)
    if name in PREDICATES:
        return _comparison(PREDICATES[name], arguments, names)
    if name == "where":
        return _selection(arguments, names)
    words = [_word(argument, names) for argument in arguments]
    form = _FORMS.get(name)
    if form is None or None in words or len(words) != (2 if "{1}" in form else 1):
        return None
    return form.format(*words)


def rounded_product(node: fx.Node, names: Callable[[fx.Node], str]) -> str | None:
    """A product that no compiler contracts with a sum of it; None where `node` is none.

    `mul.rn` of PTX: "mul" without a rounding mode may be fused, with what Triton makes of it or behind that.
    """
    expression = expression_of(node, names) if op_name(node) == "mul" else None
    return None if expression is None else "libdevice.mul_rn({}, {})".format(*expression.split(" * "))


def _quotient(arguments: Sequence[object], names: Callable[[fx.Node], str]) -> str | None:
    """Of tensors: by a number Inductor may multiply instead."""
    if len(arguments) != 2 or not all(isinstance(argument, fx.Node) for argument in arguments):
        return None
    first, second = (_word(argument, names) for argument in arguments)
    return f"({first} / {second})"


def _comparison(sign: str, arguments: Sequence[object], names: Callable[[fx.Node], str]) -> str | None:
    words = [_word(argument, names) for argument in arguments]
    if len(words) != 2 or None in words or isinstance(arguments[1], fx.Node):
        return None
    return f"{words[0]} {sign} {words[1]}"


def _selection(arguments: Sequence[object], names: Callable[[fx.Node], str]) -> str | None:
    """Between tensors, by a comparison of the same chain."""
    words = [_word(argument, names) for argument in arguments]
    condition = arguments[0] if arguments else None
    if len(words) != 3 or None in words or not isinstance(condition, fx.Node) or op_name(condition) not in PREDICATES:
        return None
    return "tl.where({}, {}, {})".format(*words)


def _power(arguments: Sequence[object], names: Callable[[fx.Node], str]) -> str | None:
    """Squares and cubes, which Inductor multiplies out in this order."""
    if len(arguments) != 2 or arguments[1] not in (2, 3) or not isinstance(arguments[0], fx.Node):
        return None
    x = names(arguments[0])
    return f"{x} * {x}" if arguments[1] == 2 else f"{x} * {x} * {x}"


def _word(argument: object, names: Callable[[fx.Node], str]) -> str | None:
    if isinstance(argument, fx.Node):
        return names(argument)
    if isinstance(argument, int | float) and not isinstance(argument, bool) and math.isfinite(argument):
        return repr(float(argument))
    return None
