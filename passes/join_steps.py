"""Join the steps of a fused graph that Inductor runs as one kernel, for their results stand in memory together.

Works on the memory model's steps (`liveness`), of which it returns new ones.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace

Buffer = int
"""A storage's identity (see `alias.storage_key`)."""


@dataclass(frozen=True, slots=True)
class Step:
    """One node that touches memory: buffers it makes, buffers it reads, and bytes it needs while it runs.

    Attributes:
        generated: Inductor writes its kernel.
        over: what a result may be written over: operands that are read where it is written.
        elements: of each result of a kernel that may be joined with others; None where they differ.
    """

    name: str
    made: tuple[tuple[Buffer, int], ...]
    read: tuple[Buffer, ...]
    generated: bool
    workspace_bytes: int
    over: tuple[Buffer, ...]
    elements: int | None


def join_side_by_side(steps: list[Step], returned: frozenset[Buffer] = frozenset()) -> list[Step]:
    """Pointwise results of as many elements that read a common buffer, or one another, come from one kernel, the first.

    Inductor reads what they share once; their results stand in memory together from then on, but for those that no
    other kernel reads, which are never stored. `returned` outlive the steps.
    """
    place: dict[Buffer, int] = {}
    for i, step in enumerate(steps):
        for key, _ in step.made:
            place.setdefault(key, i)
    joined: dict[int, list[Step]] = {i: [step] for i, step in enumerate(steps)}
    touching: defaultdict[Buffer, set[int]] = defaultdict(set)
    for j, step in enumerate(steps):
        if step.elements is None or not step.made:
            continue
        ready = max((place.get(key, 0) for key in step.read), default=0)
        near = sorted({i for key in step.read for i in touching[key] if i >= ready})
        host = next((i for i in near if steps[i].elements == step.elements), None)
        if host is not None:
            joined[host] += joined.pop(j)
            place.update(dict.fromkeys((key for key, _ in step.made), host))
        for key in (*step.read, *(key for key, _ in step.made)):
            touching[key].add(j if host is None else host)
    kernels = [joined[i] for i in sorted(joined)]
    readers = Counter(key for parts in kernels for key in {key for part in parts for key in part.read})
    return [_join(parts, readers, returned) for parts in kernels]


def _join(parts: list[Step], readers: Mapping[Buffer, int], returned: frozenset[Buffer]) -> Step:
    """One kernel, without the results that nothing but itself reads.

    What is stored may be written over operands of its own expression, not over those of such an inner one: Inductor
    decides it expression by expression.
    """
    made = [item for part in parts for item in part.made]
    read = {key for part in parts for key in part.read}
    inner = {key for key, _ in made if readers[key] == 1 and key in read} - returned
    if len(parts) == 1 and not inner:
        return parts[0]
    over = {key for part in parts for key in part.over if any(result not in inner for result, _ in part.made)}
    return replace(
        parts[0],
        made=tuple(item for item in made if item[0] not in inner),
        read=tuple(sorted(read - inner)),
        over=tuple(sorted(over - inner)),
    )


def join_in_a_row(steps: list[Step]) -> list[Step]:
    """What Inductor generates for a CPU between two calls of library kernels is one function of many loops.

    All its results are allocated before the call, and nothing is freed until it returns.
    """
    joined: list[Step] = []
    for step in steps:
        before = joined[-1] if joined else None
        if before is not None and before.generated and step.generated:
            made, read = before.made + step.made, tuple(sorted({*before.read, *step.read}))
            joined[-1] = replace(before, made=made, read=read, over=tuple(sorted({*before.over, *step.over})))
        else:
            joined.append(step)
    return joined
