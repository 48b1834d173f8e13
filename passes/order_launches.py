"""In which order fused kernels run, so that little memory is alive at once.

A compiler that fuses is left with kernels that may run anywhere between what they read and who reads them, every decode
of the backward first, for one. From the order given, `order_launches` puts off a kernel that makes more than it frees,
up to its first reader, and runs one earlier that frees more than it makes, as soon as what it frees is read by nobody
else. On a CPU the kernels between two calls of a library are one function, which frees nothing until it returns:
`end_rows` says where to end it. Read-only.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

_ROUNDS = 2


@dataclass(frozen=True, slots=True)
class Fused:
    """One kernel as it will be launched.

    Attributes:
        makes: bytes of what it stores, by buffer; 0 for what is not to be counted.
        reads: the buffers that it reads, as far as someone frees them.
        after: positions of the launches that must run before.
        yields: those of `reads` that a result of their size may take over if they die here.
        called: a library's, which no function of generated loops reaches across.
        workspace_bytes: what it needs while it runs.
    """

    makes: Mapping[str, int]
    reads: frozenset[str]
    after: frozenset[int]
    yields: frozenset[str]
    called: bool = False
    workspace_bytes: int = 0


def order_launches(launches: Sequence[Fused], given: Mapping[str, int], kept: frozenset[str]) -> list[int]:
    """Positions in the order of the least peak found; the given order if none is better.

    Args:
        launches: in an order that can be run.
        given: bytes of the buffers that live before the first launch and die with their last reader.
        kept: buffers that outlive the last launch.
    """
    mover = _Mover(launches, given, kept)
    found = [list(range(len(launches)))]
    for _ in range(_ROUNDS):
        found.append(mover.put_off(found[-1]))
        found.append(mover.pull_up(found[-1]))
    return min(found, key=lambda order: peak_bytes(order, launches, given, kept))


def peak_bytes(order: Sequence[int], launches: Sequence[Fused], given: Mapping[str, int], kept: frozenset[str]) -> int:
    """The most bytes alive at once, if each launch frees what it is the last to read."""
    total = peak = sum(given.values())
    for i, (fresh, freed) in zip(order, _changes(order, launches, given, kept), strict=True):
        peak = max(peak, total + fresh + launches[i].workspace_bytes)
        total += fresh - freed
    return peak


def end_rows(
    order: Sequence[int], launches: Sequence[Fused], given: Mapping[str, int], kept: frozenset[str]
) -> list[int]:
    """Launches behind which a row of generated kernels must end for the peak to be `peak_bytes`, as few as it takes."""
    most_bytes = peak_bytes(order, launches, given, kept)
    total, waiting, ends = sum(given.values()), 0, []
    for at, (fresh, freed) in enumerate(_changes(order, launches, given, kept)):
        too_much = waiting and total + fresh > most_bytes
        if too_much and not launches[order[at]].called:
            ends.append(order[at - 1])
        if too_much or launches[order[at]].called:
            total, waiting = total - waiting, 0
        total, waiting = total + fresh, waiting + freed
        if launches[order[at]].called:
            total, waiting = total - waiting, 0
    return ends


def _changes(
    order: Sequence[int], launches: Sequence[Fused], given: Mapping[str, int], kept: frozenset[str]
) -> Iterator[tuple[int, int]]:
    """Bytes that each launch allocates, and that are dead behind it."""
    last = {name: at for at, i in enumerate(order) for name in (*launches[i].makes, *launches[i].reads)}
    live = dict(given)
    for at, i in enumerate(order):
        launch = launches[i]
        dying = [name for name in launch.reads if last[name] == at and name in live and name not in kept]
        spare = [live[name] for name in dying if name in launch.yields]
        fresh = 0
        for size in launch.makes.values():
            if size in spare:
                spare.remove(size)
            else:
                fresh += size
        live.update(launch.makes)
        unread = [name for name in launch.makes if last[name] == at and name not in kept]
        gone = sum(live.pop(name) for name in (*dying, *unread))
        yield fresh, gone - (sum(launch.makes.values()) - fresh)


class _Mover:
    """Moves single launches of an order to where they cost less memory."""

    def __init__(self, launches: Sequence[Fused], given: Mapping[str, int], kept: frozenset[str]) -> None:
        self._launches = launches
        sizes = {**given, **{name: size for launch in launches for name, size in launch.makes.items()}}
        self._freed = [{name: sizes.get(name, 0) for name in launch.reads - kept} for launch in launches]
        self._made = [sum(launch.makes.values()) for launch in launches]
        self._readers: dict[str, list[int]] = {}
        self._followers: list[list[int]] = [[] for _ in launches]
        for i, launch in enumerate(launches):
            for name in launch.reads:
                self._readers.setdefault(name, []).append(i)
            for earlier in launch.after:
                self._followers[earlier].append(i)

    def put_off(self, order: Sequence[int]) -> list[int]:
        """Each launch, the last one first, moved behind as many others as leave fewer bytes alive for it."""
        places = _Places(order)
        for i in reversed(order):
            end = min((places.at[j] for j in self._followers[i]), default=len(order)) - 1
            room = self._made[i]
            for others, name in sorted((self._others(name, i, places), name) for name in self._freed[i]):
                room -= self._freed[i][name]
                if room <= 0:
                    # From where the other readers of these are through, waiting keeps more than it saves; and what
                    # does not write over its operand had better leave that to the last of them.
                    last = others if name in self._launches[i].yields else others - 1
                    end = min(end, max(last, places.at[i]))
                    break
            if self._made[i] and end > places.at[i]:
                places.move(i, end)
        return places.order

    def pull_up(self, order: Sequence[int]) -> list[int]:
        """Each launch, the first one first, moved before as many others as leave fewer bytes alive for it."""
        places = _Places(order)
        for i in order:
            start = max((places.at[j] for j in self._launches[i].after), default=-1) + 1
            spare = -self._made[i]
            for others, name in sorted((self._others(name, i, places), name) for name in self._freed[i]):
                spare += self._freed[i][name]
                if spare > 0:
                    start = max(start, others + (name in self._launches[i].yields))
                    break
            if spare > 0 and start < places.at[i]:
                places.move(i, start)
        return places.order

    def _others(self, name: str, reader: int, places: "_Places") -> int:
        """Where the last other reader of a buffer stands."""
        return max((places.at[j] for j in self._readers[name] if j != reader), default=-1)


class _Places:
    """An order that launches are moved in."""

    def __init__(self, order: Sequence[int]) -> None:
        self.order = list(order)
        self.at = {i: place for place, i in enumerate(order)}

    def move(self, i: int, place: int) -> None:
        before = self.at[i]
        self.order.insert(place, self.order.pop(before))
        for at in range(min(before, place), max(before, place) + 1):
            self.at[self.order[at]] = at
