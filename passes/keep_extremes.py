"""What becomes of extreme values from operator to operator: which signs of them a result can hold.

An operator that is not known to end them keeps them, so that a new one costs bytes and no gradient. Infinities that a
program holds on purpose are those of masks: what would be NaN or Inf in the plain program, too (a product of matrices,
a normalization, exp of a large number), ends them here. Read-only.
"""

from collections.abc import Mapping

from torch import fx

from fxcompress.passes.ops import GEMMS, is_attention, is_predicate, is_random, is_real, op_name

NONE, LOW, HIGH, BOTH = 0, 1, 2, 3
"""Signs of the extreme entries that a value may hold, as bits: far below zero, far above it."""
EXTREME = 1e3
"""Masks are made of -10000, -1e9, the end of the type's range or -inf: any of them spoils its group."""
_FLAT = frozenset("exp exp2 expm1 sigmoid tanh erf erfc atan hardsigmoid".split())
_ENDS = _FLAT | frozenset(
    "sin cos sinc reciprocal rsqrt softmax _softmax _safe_softmax argmax argmin empty zeros ones arange eye "
    "embedding_dense_backward".split()
)
_RECTIFIES = frozenset("relu softplus elu gelu silu mish hardswish".split())
_NO_LOW = _RECTIFIES | frozenset(
    "clamp_min amax max logsumexp max_pool2d_with_indices max_pool3d_with_indices "
    "_low_memory_max_pool_with_offsets adaptive_max_pool2d adaptive_max_pool3d".split()
)
_NO_HIGH = frozenset("clamp_max amin min".split())
_TO_HIGH = frozenset("abs square sqrt norm linalg_vector_norm var std var_mean std_mean".split())
_CLAMPS = frozenset("clamp clamp_min clamp_max hardtanh".split())
_INDEXED = frozenset(
    "index gather index_select take embedding scatter scatter_add scatter_reduce index_put index_add index_fill "
    "_unsafe_index _unsafe_masked_index".split()
)
"""Whose whole-numbered operands say where, not what."""


def kept(node: fx.Node, held: Mapping[fx.Node, int]) -> int:
    """Signs of the extremes that the result may hold because an operand holds `held` of them."""
    signs = NONE
    for position, arg in enumerate(carried(node)):
        own = held.get(arg, NONE)
        signs |= _opposite(own) if own and _turns(node, arg, position) else own
    return _through(node, signs) if signs else NONE


def carried(node: fx.Node) -> list[fx.Node]:
    """Operands whose extremes the result may hold: not what only says where, and of products what they are added to."""
    name = op_name(node)
    if node.op != "call_function" or ends(node):
        return []
    if name in ("addmm", "baddbmm"):
        return node.all_input_nodes[:1]
    if name == "where":
        return [arg for arg in node.args[1:] if isinstance(arg, fx.Node)]
    if name == "div":
        return [arg for arg in node.args[:1] if isinstance(arg, fx.Node)]
    return [arg for arg in node.all_input_nodes if name not in _INDEXED or is_real(arg)]


def squashes(node: fx.Node) -> bool:
    """Whether a value far below zero, -inf at last, gives an ordinary number."""
    name = op_name(node)
    return name in _FLAT or name in _RECTIFIES or (name in _CLAMPS and bool(_cut_off(node, name) & LOW))


def sign_of(number: object) -> int:
    """The sign of an extreme number, as a bit; 0 for other objects."""
    if not isinstance(number, (int, float)) or abs(number) < EXTREME:
        return NONE
    return HIGH if number > 0 else LOW


def ends(node: fx.Node) -> bool:
    """Whether the result holds no extremes, or none that mean something, whatever its operands hold."""
    name = op_name(node)
    if name in ("addmm", "baddbmm"):
        return False
    spreads = name in GEMMS or "convolution" in name or ("_norm" in name and "linalg" not in name)
    made_new = name.endswith("_like") or name.startswith("new_")
    return name in _ENDS or spreads or made_new or is_attention(node) or is_predicate(node) or is_random(node)


def _turns(node: fx.Node, arg: fx.Node, position: int) -> bool:
    """Whether the operand's sign is turned."""
    name, args = op_name(node), node.args
    if name in ("mul", "div"):
        return any(isinstance(other, (int, float)) and other < 0 for other in args)
    return name in ("neg", "rsub") or (name == "sub" and len(args) > 1 and arg is args[1])


def _opposite(signs: int) -> int:
    return {LOW: HIGH, HIGH: LOW}.get(signs, signs)


def _through(node: fx.Node, signs: int) -> int:
    name = op_name(node)
    if name in ("mul", "div", "cumprod", "prod"):
        scaled = any(isinstance(arg, (int, float)) for arg in node.args[:2])
        return signs if scaled else BOTH
    if name in _TO_HIGH or (name == "pow" and isinstance(node.args[0], fx.Node)):
        return HIGH
    if name in _CLAMPS:
        return signs & ~_cut_off(node, name)
    return signs & ~(LOW if name in _NO_LOW else HIGH if name in _NO_HIGH else NONE)


def _cut_off(node: fx.Node, name: str) -> int:
    """Signs that limits end, which are ordinary numbers or tensors."""
    default = (-1.0, 1.0) if name == "hardtanh" else (None, None)
    given = [*node.args[1:3], *default[len(node.args) - 1 :]]
    low, high = (None, given[0]) if name == "clamp_max" else (given[0], None if name == "clamp_min" else given[1])
    return (LOW if _limits(low) else NONE) | (HIGH if _limits(high) else NONE)


def _limits(end: object) -> bool:
    return end is not None and not sign_of(end)
