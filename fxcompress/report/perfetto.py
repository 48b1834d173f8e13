"""Timelines as a Chrome trace, which ui.perfetto.dev and chrome://tracing open. Torch-free.

One process per timeline: a counter of live bytes, the nodes as slices, and every storage as a slice on one of as many
tracks as storages overlap. One moment is one microsecond: nothing here says how long a node takes.
"""

import heapq
import json
from collections.abc import Iterator, Mapping

from fxcompress.timeline import Life, Timeline

Event = dict[str, object]
NODES = 1
"""The track of the nodes; those of the storages have the numbers behind it."""


def to_perfetto(timelines: Mapping[str, Timeline]) -> str:
    """The text of a trace file with a process per name, in their order."""
    events = [event for number, name in enumerate(timelines, 1) for event in _process(number, name, timelines[name])]
    content = {
        "traceEvents": events,
        "displayTimeUnit": "ns",
        "otherData": {"unit": "one moment is one microsecond; bytes are a model"},
    }
    return json.dumps(content, separators=(",", ":")) + "\n"


def _process(number: int, name: str, timeline: Timeline) -> Iterator[Event]:
    yield _name(number, 0, "process_name", name)
    yield _name(number, NODES, "thread_name", "nodes")
    for i, moment in enumerate(timeline.moments):
        place = {"layer": moment.layer, "source": moment.source}
        yield {"ph": "C", "pid": number, "name": "live bytes", "ts": i, "args": {"bytes": moment.live_bytes}}
        arguments = {**place, "live_bytes": moment.live_bytes, "workspace_bytes": moment.workspace_bytes}
        yield _slice(number, NODES, moment.name, moment.phase, i, 1, arguments)
    yield {"ph": "C", "pid": number, "name": "live bytes", "ts": len(timeline.moments), "args": {"bytes": 0}}
    lanes = 0
    for lane, life in _lanes(timeline):
        if lane == lanes:
            lanes += 1
            yield _name(number, NODES + 1 + lane, "thread_name", f"storages {lane + 1}")
        arguments = {"nbytes": life.nbytes, "layer": life.layer, "source": life.source}
        kind, length = "saved" if life.saved else "temporary", life.last - life.first + 1
        yield _slice(number, NODES + 1 + lane, life.name, kind, life.first, length, arguments)


def _lanes(timeline: Timeline) -> Iterator[tuple[int, Life]]:
    """Each life with the lowest track that is free for it: slices of one track must not overlap."""
    free: list[int] = []
    ending: list[tuple[int, int]] = []
    lanes = 0
    for life in sorted(timeline.lives, key=lambda life: life.first):
        while ending and ending[0][0] < life.first:
            heapq.heappush(free, heapq.heappop(ending)[1])
        if free:
            lane = heapq.heappop(free)
        else:
            lane, lanes = lanes, lanes + 1
        heapq.heappush(ending, (life.last, lane))
        yield lane, life


def _slice(
    process: int, track: int, name: str, category: str, start: int, length: int, arguments: Mapping[str, object]
) -> Event:
    return {
        "ph": "X", "pid": process, "tid": track, "name": name, "cat": category, "ts": start, "dur": length,
        "args": dict(arguments),
    }  # fmt: skip


def _name(process: int, track: int, what: str, name: str) -> Event:
    return {"ph": "M", "pid": process, "tid": track, "name": what, "args": {"name": name}}
