"""The plans of this process, and their copies beside the compile cache.

On a compile-cache hit the partitioner does not run, so no plan is made. Each plan is therefore stored under a key of
the captured graph and the partitioner's hash, and read back on a hit.
"""

import contextlib
import hashlib
import json
import logging
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import fx

from fxcompress import __version__, compat, plan_io
from fxcompress.errors import PlanError
from fxcompress.options import Options
from fxcompress.plan import GraphPlan, Plan

log = logging.getLogger(__name__)
_lock = threading.Lock()
_plans: list[GraphPlan] = []
_by_file: dict[str, list[GraphPlan]] = {}
_unchanged: list[str] = []
_recording = threading.local()


def reports() -> list[GraphPlan]:
    """The plans of all graphs that this process compiled so far, in that order."""
    with _lock:
        return list(_plans)


def unchanged() -> list[str]:
    """Why graphs were compiled unchanged, one text per graph."""
    with _lock:
        return list(_unchanged)


def clear() -> None:
    """Forget all reports of this process."""
    with _lock:
        _plans.clear()
        _by_file.clear()
        _unchanged.clear()


def record_unchanged(reason: str) -> None:
    with _lock:
        _unchanged.append(reason)


def record(plan: GraphPlan, options: Options) -> None:
    """Remember a plan; write it to `options.save_plan` together with its predecessors there."""
    with _lock:
        _plans.append(plan)
        graphs = _by_file.setdefault(options.save_plan or "", [])
        graphs[:] = [*(g for g in graphs if g.fingerprint != plan.fingerprint), plan]
        held = list(graphs)
    current = getattr(_recording, "plans", None)
    if current is not None:
        current.append(plan)
    if options.save_plan:
        plan_io.save(options.save_plan, make_plan(held, options))


def make_plan(graphs: Sequence[GraphPlan], options: Options) -> Plan:
    """A plan file's content for these graphs."""
    shown = {
        k: v
        for k, v in options.to_dict().items()
        if isinstance(v, (int, float, str, bool)) and k not in ("plan", "save_plan", "calibration")
    }
    if options.rules:
        shown["rules"] = json.dumps(options.to_dict()["rules"], sort_keys=True, separators=(",", ":"))
    return Plan(tuple(graphs), tuple(sorted(shown.items())), __version__, str(torch.__version__))


@contextlib.contextmanager
def recorded(gm: fx.GraphModule, inputs: Sequence[object], digest: str, options: Options) -> Iterator[None]:
    """Around the compilation of `gm`: store the plans made, or read back those stored by an earlier process."""
    path = _path(gm, inputs, digest)
    outer = getattr(_recording, "plans", None)
    made: list[GraphPlan] = []
    _recording.plans = made
    try:
        yield
    finally:
        _recording.plans = outer
    try:
        if made:
            path.parent.mkdir(parents=True, exist_ok=True)
            plan_io.save(str(path), make_plan(made, options))
        elif path.exists():
            for plan in plan_io.load(str(path)).graphs:
                record(plan, options)
    except (OSError, PlanError) as error:
        log.info("the report of this graph is not kept beside the compile cache: %s", error)


def _path(gm: fx.GraphModule, inputs: Sequence[object], digest: str) -> Path:
    shapes = [
        (str(x.dtype), str(tuple(x.shape)), str(x.device)) if isinstance(x, torch.Tensor) else str(x) for x in inputs
    ]
    key = hashlib.sha256(f"{digest}\n{gm.code}\n{shapes}".encode()).hexdigest()[:40]
    return Path(compat.compile_cache_dir()) / "fxcompress" / f"{key}.json"
