"""Two operators that chunks are written with, where the order of work and the number of buffers matter.

`fxcompress::add_product_(total, left, right)` adds a matrix product to a sum in place, whatever bits the operands have:
ATen's `addmm` would make a second sum per chunk. `fxcompress::after(value, done)` copies a small tensor once `done` is
computed: compilers neither fuse nor reorder across it. Importing this file registers both.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

_library = torch.library.Library("fxcompress", "DEF")  # type: ignore[no-untyped-call]
_library.define("add_product_(Tensor(a!) total, Tensor left, Tensor right) -> ()")  # type: ignore[no-untyped-call]
_library.define("after(Tensor value, Tensor[] done) -> Tensor")  # type: ignore[no-untyped-call]


@torch.library.impl(_library, "add_product_", "CompositeExplicitAutograd")
def add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total [m, n] += left [m, k] @ right [k, n], summed in the dtype of `total`."""
    if left.dtype is total.dtype:
        torch.addmm(total, left, right, out=total)
    elif left.device.type == "cuda":
        torch.ops.aten.addmm.dtype_out(total, left, right, total.dtype, out=total)
    else:
        torch.addmm(total, left.to(total.dtype), right.to(total.dtype), out=total)


@torch.library.impl(_library, "after", "CompositeExplicitAutograd")
def after(value: Tensor, done: Sequence[Tensor]) -> Tensor:
    """A copy of `value`."""
    return value.clone()


@torch.library.register_fake("fxcompress::add_product_", lib=_library)  # type: ignore[untyped-decorator]
def _add_product_fake(total: Tensor, left: Tensor, right: Tensor) -> None:
    return None


@torch.library.register_fake("fxcompress::after", lib=_library)  # type: ignore[untyped-decorator]
def _after_fake(value: Tensor, done: Sequence[Tensor]) -> Tensor:
    return torch.empty_like(value)


@register_flop_formula(torch.ops.fxcompress.add_product_)
def _add_product_flops(total: list[int], left: list[int], right: list[int], **_: object) -> int:
    return 2 * left[0] * left[1] * right[1]
