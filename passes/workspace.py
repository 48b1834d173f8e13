"""Bytes that a kernel allocates for itself while it runs, beyond its results.

`workspace_nbytes(node, channels_last=…)` states what ATen's CPU kernels take from torch's allocator: oneDNN copies the
operands of a convolution into blocked layouts unless they lie with channels last, and takes scratch memory per thread;
dropout draws its mask as floats and scales its gradient in a second step, and a batch normalization's gradient stands
twice. Measured on torch 2.13 (`bench.measure` replays every allocation); zero for all other kernels, and on other
devices, where workspaces depend on the library's choice at run time.
"""

from collections.abc import Callable, Sequence

import torch
from torch import fx

from fxcompress.passes import devices
from fxcompress.passes.alias import hint, is_static, nbytes_of
from fxcompress.passes.ops import is_view, op_name

_DEPTHWISE_COPIES = 255
"""16 x 16 channels, of which a depthwise filter uses the diagonal; less the copy that is counted anyway."""
_STEP = 16384
"""Bytes in steps of which oneDNN lays out an image of a strided convolution's gradient."""


def workspace_nbytes(node: fx.Node, *, channels_last: bool) -> int:
    """Bytes allocated and freed inside `node`; `channels_last`: whether its maps lie so whatever their strides say."""
    rule = _RULES.get(op_name(node))
    if rule is None:
        return 0
    vals = [arg.meta.get("val") for arg in node.all_input_nodes]
    if not all(map(devices.is_on_cpu, vals)):
        return 0
    return rule(node, channels_last)


def library_nbytes(node: fx.Node) -> int:
    """`workspace_nbytes` where the strides of a node's arguments say how its maps lie."""
    return workspace_nbytes(node, channels_last=False)


def _convolution(node: fx.Node, channels_last: bool) -> int:
    x, weight = _arg(node, 0), _arg(node, 1)
    if _takes_channels_last(x, channels_last):
        return nbytes_of(weight) + _scratch_nbytes(4096, 1, 0) + _copy_nbytes(node, 1, channels_last)
    return max(nbytes_of(x) + nbytes_of(weight), nbytes_of(node.meta["val"]))


def _convolution_backward(node: fx.Node, channels_last: bool) -> int:
    """Beyond the input's gradient: the weight's is returned to the caller, and the copy it is made in is not."""
    grad, x, weight = (_arg(node, position) for position in range(3))
    mask = node.args[-1]
    grad_input = nbytes_of(x) if isinstance(mask, (list, tuple)) and mask[0] else 0
    if _takes_channels_last(x, channels_last):
        copies = 2 + _DEPTHWISE_COPIES * _is_wide_depthwise(x, weight)
        own = max(copies * nbytes_of(weight), nbytes_of(weight) + _gradient_scratch_nbytes(node) * bool(grad_input))
        return own + _copy_nbytes(node, 2, channels_last)
    # What it computes with strides, oneDNN copies once more.
    copies = 2 if any(stride != 1 for stride in _sizes(node.args[4])) else 1
    return max(copies * grad_input, nbytes_of(grad) + nbytes_of(x) + nbytes_of(weight))


def _gradient_scratch_nbytes(node: fx.Node) -> int:
    """What the gradient of channels-last maps takes per thread: with strides, one image of the outputs' gradient,
    padded, in steps of 16 KiB."""
    grad, weight, strides = _arg(node, 0), _arg(node, 2), _sizes(node.args[4])
    if all(stride == 1 for stride in strides):
        return _scratch_nbytes(128, 2, 0)
    image = grad.element_size() * hint(grad.shape[1])
    for size, taps, stride in zip(grad.shape[2:], weight.shape[2:], strides, strict=True):
        image *= hint(size) + (hint(taps) - 1) // (stride if isinstance(stride, int) else 1)
    return _scratch_nbytes(12288, 2, -(-image // _STEP) * _STEP)


def _scratch_nbytes(shared: int, pages: int, own: int) -> int:
    """Bytes of one buffer for all threads, with pages and bytes of each thread's own."""
    return shared + torch.get_num_threads() * (4096 * pages + 24 + own)


def _copy_nbytes(node: fx.Node, position: int, channels_last: bool) -> int:
    """Of filters that Inductor lays out anew for a convolution with channels last: those that it does not compute."""
    filters, weight = node.args[position], _arg(node, position)
    while isinstance(filters, fx.Node) and is_view(filters):
        filters = filters.args[0]
    given = isinstance(filters, fx.Node) and filters.op == "placeholder"
    if not channels_last or not given or weight.dim() != 4 or not is_static(weight):
        return 0
    return 0 if weight.is_contiguous(memory_format=torch.channels_last) else nbytes_of(weight)


def _sizes(arg: object) -> Sequence[object]:
    return arg if isinstance(arg, (list, tuple)) else ()


def _is_wide_depthwise(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Filters of one channel each, with more than 3 x 3 taps: oneDNN adds up their gradients in blocks of channels."""
    taps = [size for size in weight.shape[2:] if isinstance(size, int)]
    alone = weight.shape[1] == 1 and weight.shape[0] == x.shape[1] and max(taps, default=0) > 3
    return alone and torch.backends.cpu.get_cpu_capability() == "AVX512"


def _dropout(node: fx.Node, channels_last: bool) -> int:
    return nbytes_of(_arg(node, 0))


def _dropout_backward(node: fx.Node, channels_last: bool) -> int:
    return nbytes_of(node.meta["val"])


def _batch_norm_backward(node: fx.Node, channels_last: bool) -> int:
    """In training, where its operands lie alike."""
    grad, x = _arg(node, 0), _arg(node, 1)
    return nbytes_of(x) if node.args[7] is True and grad.stride() == x.stride() else 0


def _arg(node: fx.Node, position: int) -> torch.Tensor:
    arg = node.args[position]
    assert isinstance(arg, fx.Node)
    val = arg.meta["val"]
    assert isinstance(val, torch.Tensor)
    return val


def _takes_channels_last(x: torch.Tensor, channels_last: bool) -> bool:
    """Maps of one channel lie both ways: Inductor leaves their strides alone, and ATen takes them for contiguous."""
    return (channels_last and x.shape[1] != 1) or _lies_channels_last(x)


def _lies_channels_last(x: torch.Tensor) -> bool:
    strides = x.stride()
    return x.dim() == 4 and isinstance(strides[1], int) and strides[1] == 1 and not x.is_contiguous()


_RULES: dict[str, Callable[[fx.Node, bool], int]] = {
    "convolution": _convolution,
    "convolution_backward": _convolution_backward,
    "native_dropout": _dropout,
    "native_dropout_backward": _dropout_backward,
    "native_batch_norm_backward": _batch_norm_backward,
}
