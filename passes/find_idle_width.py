"""Whether a stated `bits` decides anything. Read-only.

`bits` is the width of arguments of pointwise derivatives and normalizations alone. A transformer has next to none: what
it saves are operands of products and of attention, or they are rebuilt from it, and `operand_bits` is their width, as
that of factors that all of a gradient passes (`find_loss_factors`).
"""

from collections.abc import Sequence

from fxcompress.options import Options
from fxcompress.passes.choose import SHARED
from fxcompress.plan import KEEP, Decision

_LITTLE = 0.1


def find_idle_width(decisions: Sequence[Decision], options: Options) -> str:
    """What to tell a user who states `bits` alone where it is not the width of most encoded bytes; empty if it is."""
    default = Options()
    alike = options.bits in (default.bits, options.operand_bits)
    if alike or options.operand_bits != default.operand_bits or options.rules:
        return ""
    sizes = {d.tensor.storage: d.tensor.storage_nbytes for d in decisions if _is_lossy(d)}
    served = {d.tensor.storage for d in decisions if d.tensor.need == "derivative"} & sizes.keys()
    share = sum(sizes[storage] for storage in served) / max(sum(sizes.values()), 1)
    if not sizes or share >= _LITTLE:
        return ""
    return (
        f"bits={options.bits} is the width of {len(served)} of {len(sizes)} encoded tensors ({share:.0%} of their "
        "bytes): the others are operands of products or of attention, factors of the whole gradient, or rebuilt into "
        "some, and their width is "
        f"operand_bits={options.operand_bits}; state that too"
    )


def _is_lossy(decision: Decision) -> bool:
    return decision.codec not in (KEEP, SHARED, "valueset")
