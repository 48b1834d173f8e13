"""Timelines as a snapshot that PyTorch's memory viewer opens (pytorch.org/memory_viz). Torch-free.

The content is what `torch.cuda.memory._snapshot()` returns, in plain dicts and lists, one device per timeline: read in
torch 2.13 (`torch/cuda/memory.py`, `torch/cuda/_memory_viz.py`). Addresses are made up, and none is used twice.
"""

import pickle
from collections.abc import Sequence

from fxcompress.timeline import Life, Moment, Timeline

Entry = dict[str, object]
ALIGNMENT = 512
"""Of addresses, as the CUDA allocator's."""
_PROTOCOL = 4


def to_memory_viz(timelines: Sequence[Timeline]) -> bytes:
    """A pickle of the snapshot; device `i` shows timeline `i`, and ends with nothing alive."""
    snapshot = {"segments": [], "device_traces": [_trace(timeline) for timeline in timelines]}
    return pickle.dumps(snapshot, protocol=_PROTOCOL)


def _trace(timeline: Timeline) -> list[Entry]:
    """Allocations and releases in order; at each moment what it makes comes before what it frees."""
    starting: list[list[tuple[int, Life]]] = [[] for _ in timeline.moments]
    ending: list[list[tuple[int, Life]]] = [[] for _ in timeline.moments]
    address = ALIGNMENT
    for life in timeline.lives:
        starting[life.first].append((address, life))
        ending[life.last].append((address, life))
        address += -(-life.nbytes // ALIGNMENT) * ALIGNMENT
    entries: list[Entry] = []
    for i, moment in enumerate(timeline.moments):
        entries += [_entry("alloc", where, life.nbytes, _frames(life), _category(life)) for where, life in starting[i]]
        if moment.workspace_bytes:
            entries.append(_entry("alloc", address, moment.workspace_bytes, _node_frames(moment), "workspace"))
            entries += _freed(address, moment.workspace_bytes)
            address += -(-moment.workspace_bytes // ALIGNMENT) * ALIGNMENT
        entries += [entry for where, life in ending[i] for entry in _freed(where, life.nbytes)]
    return entries


def _freed(address: int, nbytes: int) -> list[Entry]:
    return [_entry(action, address, nbytes, [], "") for action in ("free_requested", "free_completed")]


def _entry(action: str, address: int, nbytes: int, frames: list[Entry], category: str) -> Entry:
    entry: Entry = {"action": action, "addr": address, "size": nbytes, "stream": 0, "frames": frames}
    return {**entry, "category": category} if category else entry


def _category(life: Life) -> str:
    return "saved" if life.saved else "temporary"


def _frames(life: Life) -> list[Entry]:
    """What the viewer shows as a stack: the node, then its layer at its source line."""
    return _stack(life.name, life.layer, life.source)


def _node_frames(moment: Moment) -> list[Entry]:
    return _stack(moment.name, moment.layer, moment.source)


def _stack(node: str, layer: str, source: str) -> list[Entry]:
    file, _, line = source.rpartition(":")
    number = int(line) if line.isdigit() else 0
    return [
        {"name": node, "filename": "graph", "line": 0},
        {"name": layer or "(top)", "filename": file or "unknown", "line": number},
    ]
