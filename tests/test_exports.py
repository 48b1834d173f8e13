"""Exports replayed: they say what the timeline says, and the viewers' own code takes them."""

import itertools
import json
import pickle
from collections import defaultdict
from typing import Any

import pytest
import torch
from torch.cuda import _memory_viz

from fxcompress.report.memory_viz import to_memory_viz
from fxcompress.report.perfetto import to_perfetto
from fxcompress.timeline import Life, Moment, Timeline


@pytest.fixture
def timeline() -> Timeline:
    """A saved storage across the turn, two temporaries of which the second takes over, and a workspace."""
    moments = (
        Moment("forward", "addmm", "h.0", "model.py:7", 1000, 0),
        Moment("forward", "gelu", "h.0", "model.py:8", 3000, 0),
        Moment("backward", "mm", "", "", 2500, 500),
        Moment("backward", "sum", "", "", 1700, 0),
    )
    lives = (
        Life("addmm", "h.0", "model.py:7", 1000, 0, 2, saved=True),
        Life("gelu", "h.0", "model.py:8", 2000, 1, 1, saved=False),
        Life("mm", "", "", 1000, 2, 2, saved=False),
        Life("sum", "", "", 1700, 3, 3, saved=False),
    )
    return Timeline(moments, lives)


def test_a_trace_counts_the_live_bytes(timeline: Timeline) -> None:
    events = json.loads(to_perfetto({"a": timeline, "b": timeline}))["traceEvents"]
    for process in (1, 2):
        counted = [event["args"]["bytes"] for event in events if event["ph"] == "C" and event["pid"] == process]
        assert counted == [moment.live_bytes for moment in timeline.moments] + [0]
    names = {event["args"]["name"] for event in events if event["ph"] == "M" and event["name"] == "process_name"}
    assert names == {"a", "b"}


def test_slices_of_one_track_never_overlap_and_cover_the_lives(timeline: Timeline) -> None:
    events = [e for e in json.loads(to_perfetto({"a": timeline}))["traceEvents"] if e["ph"] == "X"]
    tracks: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for event in events:
        tracks[event["tid"]].append((event["ts"], event["ts"] + event["dur"]))
    for spans in tracks.values():
        spans.sort()
        assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))
    storages = {(e["name"], e["ts"], e["dur"]) for e in events if e["cat"] in ("saved", "temporary")}
    assert storages == {(life.name, life.first, life.last - life.first + 1) for life in timeline.lives}
    assert len(tracks) == 1 + 2, "at most two storages are alive at once"


def replayed(trace: list[dict[str, Any]]) -> int:
    """The peak of a trace; alive storages must not overlap, and nothing is alive at the end."""
    alive: dict[int, int] = {}
    peak = 0
    for entry in trace:
        if entry["action"] == "alloc":
            end = entry["addr"] + entry["size"]
            assert all(end <= start or entry["addr"] >= start + size for start, size in alive.items())
            alive[entry["addr"]] = entry["size"]
            peak = max(peak, sum(alive.values()))
        elif entry["action"] == "free_completed":
            assert alive.pop(entry["addr"]) == entry["size"]
    assert not alive
    return peak


def test_a_snapshot_replays_to_the_peak(timeline: Timeline) -> None:
    snapshot = pickle.loads(to_memory_viz([timeline, Timeline((), ())]))
    first, second = snapshot["device_traces"]
    assert replayed(first) == timeline.peak_bytes and second == []


def test_pytorchs_own_viewer_functions_take_a_snapshot(timeline: Timeline) -> None:
    snapshot = pickle.loads(to_memory_viz([timeline, timeline]))
    text = _memory_viz.trace(snapshot)
    assert "Device 0" in text and "Device 1" in text and "TOTAL MEM" in text
    assert "segments: 0" in _memory_viz.segsum(snapshot)
    assert "snapshot.pickle" in _memory_viz.trace_plot(snapshot)
    assert _memory_viz.filter_alloc_free_pairs(snapshot)["device_traces"] == [[], []]


def test_a_snapshot_has_the_fields_of_a_profilers() -> None:
    """PyTorch makes snapshots of profiles too; ours have every field that its entries have."""
    with torch.profiler.profile(profile_memory=True, record_shapes=True, with_stack=True) as profile:
        torch.ones(64, 64).square().sum()
    theirs = [entry for trace in _memory_viz._profile_to_snapshot(profile)["device_traces"] for entry in trace]
    life = Life("x", "", "", 5, 0, 0, saved=True)
    ours = pickle.loads(to_memory_viz([Timeline((Moment("forward", "x", "", "", 5, 0),), (life,))]))["device_traces"][0]
    assert theirs
    for action in ("alloc", "free_requested"):
        wanted = next(entry for entry in theirs if entry["action"] == action)
        found = next(entry for entry in ours if entry["action"] == action)
        assert wanted.keys() <= found.keys()


def test_equal_timelines_give_equal_bytes(timeline: Timeline) -> None:
    assert to_perfetto({"a": timeline}) == to_perfetto({"a": timeline})
    assert to_memory_viz([timeline]) == to_memory_viz([timeline])
