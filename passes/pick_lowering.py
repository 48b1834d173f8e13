"""Pick the code that encodes each tensor: decomposed ATen, a hand-written Triton kernel, or an opaque operator.

All compute the same bits, so that this decides nothing but time, and is decided anew wherever a plan is replayed.

On a GPU there is no measurement; the rule is what was counted (`python -m bench.traffic`, `python -m bench.sass`):
Inductor makes one kernel of an encode that rounds to nearest, often fused with what produces the tensor, but several of
a stochastic one, with all the noise in memory between them. Decodes stay ATen, because Inductor computes them where
they are read. On a CPU every kernel is a run of the C++ compiler, and operators share theirs (decision 5). Masks are
better fused with what makes and reads them, everywhere: as tensors they are 8 times as large.
"""

from dataclasses import replace

from fxcompress.codecs import lowering
from fxcompress.passes.choose import Choice, Encoding
from fxcompress.plan import ATEN, OPERATOR, TRITON


def pick_lowering(choice: Choice, *, outline: bool) -> Choice:
    """The choice with `lowering` set in every encoding and in the decision that it belongs to.

    `outline`: whether lossy codecs on a CPU are called as operators.
    """
    encodings = tuple(replace(encoding, lowering=_lowering_of(encoding, outline)) for encoding in choice.encodings)
    picked = {encoding.storage.members[0].bw.name: encoding.lowering for encoding in encodings}
    decisions = tuple(replace(d, lowering=picked.get(d.tensor.name, "")) for d in choice.decisions)
    return Choice(decisions, encodings)


def _lowering_of(encoding: Encoding, outline: bool) -> str:
    val, codec = encoding.source.meta["val"], encoding.codec
    if val.device.type == "cpu":
        return OPERATOR if outline and codec.contract.kind != "exact" else ATEN
    static = all(isinstance(size, int) for size in (*val.shape, *val.stride()))
    if codec.contract.kind != "unbiased" or not static or not lowering.wanted(val):
        return ATEN
    return ATEN if lowering.find(codec, encoding.order.cols, val.dtype) is None else TRITON
