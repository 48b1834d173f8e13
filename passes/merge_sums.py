"""Which sums Inductor writes as one `addmm` with a product: the product then runs where the sum stands.

On a CPU every sum is written so whose one term is a product that nothing else reads; gradients that a loop adds up
step by step then never stand beside one another. On a GPU Inductor prefers to fuse sums with their readers. Read-only.
"""

import torch
from torch import fx

from fxcompress.passes.ops import op_name
from fxcompress.passes.phases import Phase


def find_merged(phase: Phase) -> dict[fx.Node, fx.Node]:
    """Products of two matrices, and the sum that each is computed in."""
    merged: dict[fx.Node, fx.Node] = {}
    for node in phase.nodes:
        product = _merged_product(node, phase)
        if product is not None:
            merged[product] = node
    return merged


def _merged_product(total: fx.Node, phase: Phase) -> fx.Node | None:
    """`is_valid_addmm_fusion` of Inductor's post_grad passes, as in 2.13."""
    if op_name(total) != "add" or len(total.args) != 2 or total.kwargs:
        return None
    terms = [arg for arg in total.args if isinstance(arg, fx.Node) and isinstance(arg.meta.get("val"), torch.Tensor)]
    if len(terms) != 2:
        return None
    for product, other in (terms, terms[::-1]):
        alone = op_name(product) == "mm" and len(phase.users(product)) == 1 and product not in phase.leaving
        if alone and _fits(other.meta["val"], product.meta["val"]):
            return product
    return None


def _fits(other: torch.Tensor, product: torch.Tensor) -> bool:
    sizes = zip(reversed(other.shape), reversed(product.shape), strict=False)
    return other.dtype is product.dtype and other.dim() <= 2 and all(a == b or a == 1 for a, b in sizes)
