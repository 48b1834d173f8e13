"""The operator vocabulary that several passes share: names, views, reductions, discontinuities."""

import functools
import operator
from typing import Final

import torch
from torch import fx

from fxcompress.compat import OpOverload

GRADIENT = "gradient"
"""`meta["actcomp"]` of forward nodes that are gradients already."""

ORIGIN = "actcomp_origin"
"""`meta[ORIGIN]` is the operator, as `full_name` gives it, of the node that one stands for which we made."""

SIGNED = "actcomp_signed"
"""`meta[SIGNED]` is set on saved values of which the backward asks whether they are positive, and whose codec is to
keep that."""

VIEWS = frozenset(
    "view reshape _unsafe_view permute transpose t expand alias detach squeeze unsqueeze select slice as_strided split "
    "unbind diagonal unfold split_with_sizes view_as inductor_force_stride_order".split()
)
"""Operators whose result (or each of whose results) addresses its input's storage."""

MAY_COPY = frozenset("reshape _unsafe_view inductor_force_stride_order".split())
"""Those of them that copy where strides do not allow a view."""

MOVES = VIEWS | frozenset(
    "clone contiguous cat copy flip repeat constant_pad_nd stack _to_copy convert_element_type".split()
)
"""Operators that only move or cast elements: an element's error stays its own."""

LEAF_FINISH = MOVES | frozenset("sum add neg mean".split())
"""Operators between a weight-gradient product and the graph's output that neither mix nor amplify errors."""

GEMMS = frozenset(
    "mm bmm addmm baddbmm matmul linear dot mv _scaled_mm _grouped_mm grouped_mm_fallback "
    "grouped_mm_fallback_backward".split()
)
PRODUCTS = GEMMS | {"mul"}
"""Bilinear operators: linear in the saved operand when the other one is a gradient."""

PREDICATES = frozenset(
    "eq ne lt le gt ge isnan isinf isfinite logical_and logical_or logical_not logical_xor bitwise_and bitwise_or "
    "bitwise_not bitwise_xor sign sgn signbit".split()
)
"""Discontinuous operators with a finite result, which can be saved exactly in bits."""

JUMPS = frozenset(
    "floor ceil round trunc argmax argmin sort topk max_pool2d_with_indices _low_memory_max_pool_with_offsets median "
    "mode kthvalue nonzero searchsorted bucketize fmod remainder frac floor_divide".split()
)
"""Other discontinuous operators: a lossy value must not reach them."""

REDUCTIONS = frozenset(
    "sum mean var var_mean amax amin prod logsumexp std std_mean any all max min norm linalg_vector_norm".split()
)

_UNTAGGED = frozenset(
    "mse_loss_backward smooth_l1_loss_backward huber_loss_backward soft_margin_loss_backward glu_backward "
    "binary_cross_entropy_backward log_sigmoid_backward softplus_backward mish_backward elu_backward "
    "leaky_relu_backward hardtanh_backward hardsigmoid_backward hardswish_backward _prelu_kernel_backward "
    "rrelu_with_noise_backward".split()
)
"""Pointwise, though PyTorch does not tag them so."""


_NAMES: Final[dict[int, tuple[object, str]]] = {}
"""Targets with their names, by identity: every pass asks for them, and PyTorch hashes an operator in Python."""


def op_name(node: fx.Node) -> str:
    """Bare operator name: `add` for aten.add.Tensor; else the function's name; the op kind for placeholders."""
    if node.op != "call_function":
        return node.op
    target = node.target
    known = _NAMES.get(id(target))
    if known is None:
        known = _NAMES[id(target)] = target, _target_name(target)
    return known[1]


def _target_name(target: object) -> str:
    if isinstance(target, OpOverload):
        return target._schema.name.rpartition("::")[2]
    return str(getattr(target, "__name__", target))


def is_pointwise(node: fx.Node) -> bool:
    """Whether elements of the result depend on single elements of the arguments."""
    tagged = isinstance(node.target, OpOverload) and torch.Tag.pointwise in node.target.tags
    return tagged or op_name(node) in MOVES or op_name(node) in _UNTAGGED


def full_name(node: fx.Node) -> str:
    """Operator as a user reads it: `aten.addmm`; for an element of a tuple, the operator that made the tuple."""
    if ORIGIN in node.meta:
        return str(node.meta[ORIGIN])
    if node.target is operator.getitem and isinstance(node.args[0], fx.Node):
        return f"{full_name(node.args[0])}[{node.args[1]}]"
    if isinstance(node.target, OpOverload):
        return node.target._schema.name.replace("::", ".")
    return op_name(node)


def is_attention(node: fx.Node) -> bool:
    """Fused attention kernels, forward and backward, on every device."""
    return _attends(op_name(node))


@functools.cache
def _attends(name: str) -> bool:
    return "scaled_dot_product" in name or "flash_attention" in name or "efficient_attention" in name


def is_random(node: fx.Node) -> bool:
    """Draws random numbers."""
    return node.op == "call_function" and "rand" in op_name(node)


def is_view(node: fx.Node) -> bool:
    return node.op == "call_function" and (op_name(node) in VIEWS or node.target is operator.getitem)


def base_of(node: fx.Node) -> fx.Node:
    """The node that a view is one of, which is no view."""
    while is_view(node):
        node = node.all_input_nodes[0]
    return node


def is_square(node: fx.Node) -> bool:
    """Whether it multiplies a value with itself."""
    name, args = op_name(node), node.args
    return name == "square" or (name == "pow" and bool(args[1] == 2)) or (name == "mul" and args[0] is args[1])


def is_predicate(node: fx.Node) -> bool:
    """Discontinuous with a finite result, or bool: what can be saved exactly in bits."""
    val = node.meta.get("val")
    return op_name(node) in PREDICATES or (isinstance(val, torch.Tensor) and val.dtype is torch.bool)


def is_real(node: fx.Node) -> bool:
    """Whether it is a tensor of floating point numbers."""
    val = node.meta.get("val")
    return isinstance(val, torch.Tensor) and val.dtype.is_floating_point
