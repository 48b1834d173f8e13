"""What repeats along a tensor in memory, against enumeration."""

import itertools

import pytest
import torch
from torch import fx

from fxcompress.passes.same_place import repeats


def nodes(one: torch.Tensor, two: torch.Tensor) -> tuple[fx.Node, fx.Node]:
    graph = fx.Graph()
    found = graph.placeholder("one"), graph.placeholder("two")
    for node, val in zip(found, (one, two), strict=True):
        node.meta["val"] = val
    return found


def is_repeated(one: torch.Tensor, two: torch.Tensor) -> bool:
    """Whether the elements of `two`, in the order of its memory, meet those of `one` in the order of its memory again
    and again, eight by eight."""
    places = torch.empty_like(two, dtype=torch.int64)
    numbered = torch.arange(one.numel()).as_strided(one.shape, one.stride())
    places.copy_(numbered.expand(two.shape))
    flat = places.as_strided((two.numel(),), (1,))
    again = torch.arange(two.numel()) % one.numel()
    return one.numel() < two.numel() and one.numel() % 8 == 0 and torch.equal(flat, again)


SHAPES = [(shape, last) for shape in itertools.product((1, 2, 8), (1, 8, 16), (1, 8, 16)) for last in (False, True)]


@pytest.mark.parametrize(("shape", "last"), SHAPES, ids=str)
def test_repeats_is_what_enumeration_says(shape: tuple[int, ...], last: bool) -> None:
    two = torch.empty(shape)
    if last:
        two = torch.empty(shape[0], shape[2], shape[1]).transpose(1, 2)
    for kept in itertools.product((False, True), repeat=3):
        size = [n if keep else 1 for n, keep in zip(shape, kept, strict=True)]
        one = torch.empty(size)
        if one.shape == two.shape:
            continue
        for given in (one, one.squeeze(0) if size[0] == 1 else one):
            assert repeats(*nodes(given, two)) == is_repeated(given, two), (given.shape, two.shape, two.stride())
