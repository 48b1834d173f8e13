"""Vary the batch size of a model's inputs.

A batch is stated in one of two ways: input specifications that name it (`f32[B,3,32,32]`), or the factory's own
inputs, which then must agree in their leading size. `batch_maker(…)` says which, or why neither will do.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fxcompress import compat
from fxcompress.compat import FakeTensorMode
from fxcompress.errors import OptionError
from fxcompress.inputs import check_templates, parse_inputs

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Batches:
    """`make(b)` returns arguments of batch size `b`; `start` is worth trying first; `how` says what is varied."""

    make: Callable[[int], Arguments]
    start: int
    how: str


def batch_maker(
    texts: Sequence[str], args: tuple[Any, ...], kwargs: dict[str, Any], mode: FakeTensorMode, *, start: int = 8
) -> Batches:
    """How to make inputs of any batch size.

    Args:
        texts: input specifications, which replace the factory's positional arguments; may be empty.
        args, kwargs: the factory's arguments.
        mode: the fake tensor mode that all tensors belong to.
        start: the size to try first where the factory brings none.

    Raises:
        OptionError: no specification names B, or the factory's tensors have no common leading size.
    """
    if texts:
        check_templates(texts)
        return Batches(
            lambda batch: (tuple(spec.make(fake=mode) for spec in parse_inputs(texts, batch=batch)), kwargs),
            start,
            f"B in {' '.join(texts)}",
        )
    leading = _common_leading_size((args, kwargs))

    def make(batch: int) -> Arguments:
        with mode:
            scaled: Arguments = compat.map_tensors(lambda tensor: with_leading_size(tensor, batch), (args, kwargs))
        return scaled

    return Batches(make, leading, f"the leading size of the factory's inputs ({leading} there)")


def with_leading_size(tensor: torch.Tensor, size: int) -> torch.Tensor:
    """A tensor like `tensor` but with `size` rows, its dimensions in the same order in memory; a scalar as it is.

    The values are arbitrary: this is for fake tensors.
    """
    if not tensor.dim():
        return tensor
    strides = tensor.stride()
    order = sorted(range(tensor.dim()), key=strides.__getitem__, reverse=True)
    shape = (size, *tensor.shape[1:])
    made = torch.empty([shape[dim] for dim in order], dtype=tensor.dtype, device=tensor.device)
    return made.permute([order.index(dim) for dim in range(tensor.dim())]).requires_grad_(tensor.requires_grad)


def _common_leading_size(inputs: object) -> int:
    tensors: list[torch.Tensor] = []
    compat.map_tensors(tensors.append, inputs)
    shapes = [tuple(tensor.shape) for tensor in tensors if tensor.dim()]
    if not shapes:
        raise OptionError('the factory brings no inputs to vary: state them as --input "f32[B,3,32,32]", B the batch')
    sizes = sorted({shape[0] for shape in shapes})
    if len(sizes) > 1 or not sizes[0]:
        shown = ", ".join("x".join(map(str, shape)) for shape in shapes[:6])
        raise OptionError(
            f"the factory's inputs ({shown}) have no common leading size that could be the batch: state them as "
            '--input "f32[B,3,32,32]", B the batch, or let the factory return inputs that have one'
        )
    return sizes[0]
