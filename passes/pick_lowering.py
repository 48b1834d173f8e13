"""Pick the code that encodes each tensor: decomposed ATen, a hand-written Triton kernel, or an opaque operator.

All compute the same bits, so that this decides nothing but time, and is decided anew wherever a plan is replayed.

On a GPU there is no measurement; the rule is what was counted (`python -m bench.traffic`). Inductor makes one kernel of
an encode that rounds to nearest, often fused with what produces the tensor, but several of a stochastic one, with all
the noise in memory between them. Of a mask it makes one that computes the mask anew from what it is a condition on;
random numbers, which otherwise never exist in memory, it then writes and reads twice, at four bytes each. Over sums of
symbolic sizes (T - 1 tokens of 8 texts) it may fuse a reduction with what it cannot split alike, and fails. Decodes
stay ATen, because Inductor computes them where they are read. On a CPU every kernel is a run of the C++ compiler, and
operators share theirs (decision 5); masks are better fused there with what makes and reads them: as tensors they are 8
times as large.
"""

from dataclasses import replace

from torch import fx

from fxcompress.codecs import lowering
from fxcompress.passes.alias import is_static
from fxcompress.passes.choose import Choice, Encoding
from fxcompress.passes.ops import MOVES, SIGNED, is_random, op_name
from fxcompress.plan import ATEN, OPERATOR, TRITON


def pick_lowering(choice: Choice, *, kernels: bool, outline: bool) -> Choice:
    """The choice with `lowering` set in every encoding and in the decision that it belongs to.

    Args:
        choice: what is to be encoded how.
        kernels: whether the inner compiler takes Triton kernels as graph nodes.
        outline: whether lossy codecs on a CPU are called as operators.
    """
    encodings = tuple(replace(e, lowering=_lowering_of(e, kernels, outline)) for e in choice.encodings)
    picked = {encoding.storage.members[0].bw.name: encoding.lowering for encoding in encodings}
    decisions = tuple(replace(d, lowering=picked.get(d.tensor.name, "")) for d in choice.decisions)
    return Choice(decisions, encodings)


def _lowering_of(encoding: Encoding, kernels: bool, outline: bool) -> str:
    val, codec = encoding.source.meta["val"], encoding.codec
    if kernels and lowering.wanted(val):
        return TRITON if _is_kernel(encoding) else ATEN
    return OPERATOR if outline and val.device.type == "cpu" and codec.contract.kind != "exact" else ATEN


def _is_kernel(encoding: Encoding) -> bool:
    """Whether a kernel of ours encodes it in fewer launches or bytes than Inductor's would, or that may fail."""
    val, codec = encoding.source.meta["val"], encoding.codec
    lossy = codec.contract.kind != "exact"
    several = codec.contract.kind == "unbiased" or _is_drawn(encoding.source) or (lossy and not is_static(val))
    # What rounds to nearest and keeps signs is one kernel of Inductor's at 8 bits alone.
    several = several or (SIGNED in encoding.source.meta and codec.bits < 8)
    return several and lowering.find(codec, encoding.order.cols, val.dtype) is not None


def _is_drawn(node: fx.Node) -> bool:
    """Whether it is computed from random numbers directly, or from casts of them."""
    for argument in node.all_input_nodes:
        while op_name(argument) in MOVES and len(argument.all_input_nodes) == 1:
            (argument,) = argument.all_input_nodes
        if is_random(argument):
            return True
    return False
