"""Loops of generated kernels, split where an index divides what a loop counts.

Names of `torch._inductor.loop_body`, `.dependencies` and `.scheduler`, and of `torch.utils._sympy`: run in 2.11 and
2.13.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any


def split_loops(nodes: Sequence[Any]) -> None:
    """Split the loops of pointwise kernels for a GPU so that as few indices as can be divide; edits the nodes.

    A code's byte is `column % group % bytes`, of a column that is itself the thread's index modulo the channels. Triton
    does not follow a remainder of a remainder: it loads such bytes one by one, and computes the index of each. A loop
    over the bytes of a group, inside of one over groups, has a single remainder, of which it knows the neighbours. No
    bit changes, and no loop runs in another order.

    Args:
        nodes: Inductor's after fusion.
    """
    from torch._inductor.scheduler import SchedulerNode

    for node in nodes:
        # A reduction computes its indices once for all that it adds up, and would be cut into other tiles.
        if not node.is_gpu() or node.is_template() or node.is_reduction():
            continue
        for part in node.get_nodes():
            if isinstance(part, SchedulerNode) and (body := split_body(part._body)) is not part._body:
                part._body, part._sizes = body, body.sizes
                part.refresh_dependencies(normalize=True, need_clear_tiling_cache=True)


def split_body(body: Any) -> Any:
    """A `LoopBody` with every split that leaves fewer divisions; the same if it has no remainders or no such split.

    Quotients alone, such as a column's group, Triton follows.
    """
    count = _count(body) if _has_remainder(body) else 0
    while count:
        splits = (_split_at(body, position, inner) for position, inner in sorted(set(_candidates(body))))
        better = next((split for split in splits if _count(split) < count), None)
        if better is None:
            break
        body, count = better, _count(better)
    return body


def _divisions(body: Any) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    """What is divided, and the numbers at multiples of which the result changes."""
    from torch.utils._sympy.functions import FloorDiv, ModularIndexing

    for index in body.indexing_exprs.values():
        for base, divisor in (found.args for found in index.atoms(FloorDiv)):
            yield base, (divisor,)
        for base, divisor, modulus in (found.args for found in index.atoms(ModularIndexing)):
            yield base, (divisor, divisor * modulus)


def _has_remainder(body: Any) -> bool:
    from torch.utils._sympy.functions import ModularIndexing

    return any(index.has(ModularIndexing) for index in body.indexing_exprs.values())


def _count(body: Any) -> int:
    return sum(1 for _ in _divisions(body))


def _candidates(body: Any) -> Iterator[tuple[int, int]]:
    """(loop, size of its inner part) of the splits that a division suggests."""
    for base, cuts in _divisions(body):
        for position, (var, size) in enumerate(body.var_ranges.items()):
            stride = base.coeff(var)
            for cut in cuts:
                if all(map(_is_static, (stride, cut, size))) and stride > 0 and cut % stride == 0:
                    inner = int(cut // stride)
                    if 1 < inner < size and size % inner == 0:
                        yield position, inner


def _split_at(body: Any, position: int, inner: int) -> Any:
    """A copy with loop number `position` as two, of which the second counts to `inner`."""
    from torch._inductor.dependencies import index_vars_no_squeeze
    from torch._inductor.loop_body import LoopBody

    sizes = [list(part) for part in body.sizes]
    part = 0 if position < len(sizes[0]) else 1
    at = position - part * len(sizes[0])
    sizes[part][at : at + 1] = [sizes[part][at] // inner, inner]
    loops, ranges = index_vars_no_squeeze(*sizes, prefix="p")
    indices = [list(group) for group in loops]
    high, low = indices[part][at : at + 2]
    indices[part][at : at + 2] = [high * inner + low]
    copy: Any = LoopBody
    split = copy(body, indices, ranges, *loops, allow_same_symbol_in_index=True)
    split.indexing_exprs = {name: _folded(index, ranges) for name, index in split.indexing_exprs.items()}
    return split


def _folded(index: Any, ranges: Mapping[Any, Any]) -> Any:
    """An index without the divisions whose result is one number; 2.11 leaves them."""
    from torch.utils._sympy.functions import FloorDiv, ModularIndexing
    from torch.utils._sympy.numbers import int_oo
    from torch.utils._sympy.value_ranges import ValueRanges, bound_sympy

    bounds = {var: ValueRanges(0, int(n) - 1 if _is_static(n) else int_oo) for var, n in ranges.items()}
    results = {division: bound_sympy(division, bounds) for division in index.atoms(FloorDiv, ModularIndexing)}
    return index.xreplace({division: of.lower for division, of in results.items() if of.lower == of.upper})


def _is_static(size: Any) -> bool:
    return isinstance(size, int) or bool(size.is_Integer)
