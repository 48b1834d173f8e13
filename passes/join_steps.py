"""Join the steps of a fused graph that Inductor runs as one kernel, for their results stand in memory together.

Works on the memory model's steps (`liveness`), of which it returns new ones.
"""

from collections import Counter, defaultdict
from dataclasses import dataclass, replace

Buffer = int
"""A storage's identity (see `alias.storage_key`)."""


@dataclass(frozen=True, slots=True)
class Step:
    """One node that touches memory: buffers it makes, buffers it reads, and bytes it needs while it runs.

    `generated`: Inductor writes its kernel. `in_place`: that kernel reads what it writes at the same place, so that a
    result may take over an operand. `elements`: of each result, None where they differ.
    """

    name: str
    made: tuple[tuple[Buffer, int], ...]
    read: tuple[Buffer, ...]
    in_place: bool
    generated: bool
    workspace_bytes: int
    elements: int | None


def join_side_by_side(steps: list[Step], returned: frozenset[Buffer] = frozenset()) -> list[Step]:
    """Pointwise results of one shape that read a common buffer, or one another, come from one kernel, the first one's.

    Inductor reads what they share once; their results stand in memory together from then on, but for those that no
    other kernel reads, which are never stored. `returned` outlive the steps.
    """
    place: dict[Buffer, int] = {}
    for i, step in enumerate(steps):
        for key, _ in step.made:
            place.setdefault(key, i)
    joined: dict[int, Step] = dict(enumerate(steps))
    touching: defaultdict[Buffer, set[int]] = defaultdict(set)
    for j, step in enumerate(steps):
        if not (step.in_place and step.made):
            continue
        ready = max((place.get(key, 0) for key in step.read), default=0)
        near = sorted({i for key in step.read for i in touching[key] if i >= ready})
        host = next((i for i in near if step.elements is not None and steps[i].elements == step.elements), None)
        if host is not None:
            other = joined[host]
            read = tuple(sorted({*other.read, *step.read}))
            joined[host] = replace(other, made=other.made + step.made, read=read)
            place.update(dict.fromkeys((key for key, _ in step.made), host))
            del joined[j]
        for key in (*step.read, *(key for key, _ in step.made)):
            touching[key].add(j if host is None else host)
    return _without_inner([joined[i] for i in sorted(joined)], returned)


def _without_inner(steps: list[Step], returned: frozenset[Buffer]) -> list[Step]:
    """Steps without the results that nothing but the step itself reads."""
    readers = Counter(key for step in steps for key in step.read)
    kept = []
    for step in steps:
        own = set(step.read)
        inner = {key for key, _ in step.made if readers[key] == 1 and key in own} - returned
        if not inner:
            kept.append(step)
            continue
        made = tuple(item for item in step.made if item[0] not in inner)
        kept.append(replace(step, made=made, read=tuple(key for key in step.read if key not in inner)))
    return kept


def join_in_a_row(steps: list[Step]) -> list[Step]:
    """What Inductor generates for a CPU between two calls of library kernels is one function of many loops.

    All its results are allocated before the call, and nothing is freed until it returns.
    """
    joined: list[Step] = []
    for step in steps:
        before = joined[-1] if joined else None
        if before is not None and before.generated and step.generated:
            made, read = before.made + step.made, tuple(sorted({*before.read, *step.read}))
            joined[-1] = replace(before, made=made, read=read, in_place=before.in_place or step.in_place)
        else:
            joined.append(step)
    return joined
