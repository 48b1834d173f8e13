"""Pick the code that encodes each tensor: decomposed ATen, or a hand-written Triton kernel.

Both compute the same bits, so that this decides nothing but time, and is decided anew wherever a plan is replayed.
There is no measurement; the rule is what was counted (`python -m bench.traffic`): Inductor makes one kernel of an
encode that rounds to nearest, often fused with what produces the tensor, but several of a stochastic one, with all the
noise in memory between them. Decodes stay ATen, because Inductor computes them where they are read.
"""

from dataclasses import replace

from fxcompress.codecs import lowering
from fxcompress.passes.choose import Choice, Encoding
from fxcompress.plan import ATEN, TRITON


def pick_lowering(choice: Choice, *, kernels: bool) -> Choice:
    """The choice with `lowering` set in every encoding and in the decision that it belongs to.

    Args:
        choice: what is to be encoded how.
        kernels: whether the inner compiler takes Triton kernels as graph nodes; without, everything is ATen.
    """
    encodings = tuple(replace(e, lowering=_lowering_of(e) if kernels else ATEN) for e in choice.encodings)
    picked = {encoding.storage.members[0].bw.name: encoding.lowering for encoding in encodings}
    decisions = tuple(replace(d, lowering=picked.get(d.tensor.name, "")) for d in choice.decisions)
    return Choice(decisions, encodings)


def _lowering_of(encoding: Encoding) -> str:
    val, codec = encoding.source.meta["val"], encoding.codec
    static = all(isinstance(size, int) for size in (*val.shape, *val.stride()))
    if codec.contract.kind != "unbiased" or not static or not lowering.wanted(val):
        return ATEN
    return ATEN if lowering.find(codec, encoding.order.cols, val.dtype) is None else TRITON
