"""Tensors in nested tuples, dicts and registered classes: names of `torch.utils._pytree`, run in 2.11 and 2.13."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils import _pytree as pytree


def map_tensors(function: Callable[[torch.Tensor], Any], values: Any) -> Any:
    """`values` with `function` in place of every tensor; `tree_map_only`."""
    return pytree.tree_map_only(torch.Tensor, function, values)


def tensors_in(values: Any) -> list[torch.Tensor]:
    """The tensors of `values` in their order; `tree_leaves`."""
    return [leaf for leaf in pytree.tree_leaves(values) if isinstance(leaf, torch.Tensor)]


def tensors_by_path(values: Any) -> dict[str, torch.Tensor]:
    """The tensors of `values` by the Python text that leads to each: `[0]`, `['loss']`, `.logits`.

    `tree_flatten_with_path`, `keystr`.
    """
    leaves, _ = pytree.tree_flatten_with_path(values)
    return {pytree.keystr(path): leaf for path, leaf in leaves if isinstance(leaf, torch.Tensor)}
