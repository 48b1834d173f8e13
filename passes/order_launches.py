"""In which order fused kernels run, so that little memory is alive at once.

A compiler that fuses is left with kernels that may run anywhere between what they read and who reads them, every decode
of the backward first, for one. From the order given, `order_launches` puts off a kernel that makes more than it frees,
up to its first reader, and runs one earlier that frees more than it makes, as soon as what it frees is read by nobody
else. On a CPU the kernels between two calls of a library are one function (`in_rows`). Read-only.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_ROUNDS = 2


@dataclass(frozen=True, slots=True)
class Launch:
    """One kernel as it will be launched.

    Attributes:
        makes: bytes of what it stores, by buffer; 0 for what is not to be counted.
        reads: the buffers that it reads, as far as someone frees them.
        after: positions of the launches that must run before.
        yields: those of `reads` that a result of their size may take over if they die here.
        called: a library's, which no function of generated loops reaches across.
    """

    makes: Mapping[str, int]
    reads: frozenset[str]
    after: frozenset[int]
    yields: frozenset[str]
    called: bool = False


def order_launches(
    launches: Sequence[Launch], given: Mapping[str, int], kept: frozenset[str], *, in_rows: bool = False
) -> list[int]:
    """Positions in the order of the least peak found; the given order if none is better.

    Args:
        launches: in an order that can be run.
        given: bytes of the buffers that live before the first launch and die with their last reader.
        kept: buffers that outlive the last launch.
        in_rows: as for `peak_bytes`.
    """
    mover = _Mover(launches, given, kept)
    found = [list(range(len(launches)))]
    for _ in range(_ROUNDS):
        found.append(mover.put_off(found[-1]))
        found.append(mover.pull_up(found[-1]))
    return min(found, key=lambda order: peak_bytes(order, launches, given, kept, in_rows=in_rows))


def peak_bytes(
    order: Sequence[int],
    launches: Sequence[Launch],
    given: Mapping[str, int],
    kept: frozenset[str],
    *,
    in_rows: bool = False,
) -> int:
    """The most bytes alive at once; `in_rows`: nothing is freed between generated kernels that no call parts."""
    last = {name: at for at, i in enumerate(order) for name in (*launches[i].makes, *launches[i].reads)}
    live = dict(given)
    total = peak = sum(live.values())
    waiting, in_row = 0, False
    for at, i in enumerate(order):
        launch = launches[i]
        if not in_row or launch.called:
            total, waiting = total - waiting, 0
        in_row = in_rows and not launch.called
        dying = [name for name in launch.reads if last[name] == at and name in live and name not in kept]
        spare = [live[name] for name in dying if name in launch.yields]
        fresh = 0
        for size in launch.makes.values():
            if size in spare:
                spare.remove(size)
            else:
                fresh += size
        peak = max(peak, total + fresh)
        live.update(launch.makes)
        total += fresh
        unread = [name for name in launch.makes if last[name] == at and name not in kept]
        gone = sum(live.pop(name) for name in (*dying, *unread))
        waiting += gone - (sum(launch.makes.values()) - fresh)
    return peak


class _Mover:
    """Moves single launches of an order to where they cost less memory."""

    def __init__(self, launches: Sequence[Launch], given: Mapping[str, int], kept: frozenset[str]) -> None:
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
            for others, size in sorted((self._others(name, i, places), size) for name, size in self._freed[i].items()):
                room -= size
                if room <= 0:
                    # From where the other readers of these are through, waiting keeps more than it saves.
                    end = min(end, max(others, places.at[i]))
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
            for others, size in sorted((self._others(name, i, places), size) for name, size in self._freed[i].items()):
                spare += size
                if spare > 0:
                    start = max(start, others + 1)
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
