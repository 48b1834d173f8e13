"""Runs the cases of a section in killable processes, and turns whatever goes wrong into rows."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from bench.device.rows import Row
from bench.device.section import Section
from bench.device.worker import POISONED, Order
from bench.record import append_rows

ROOT = Path(__file__).resolve().parents[2]
_POLL_S = 0.05
_SHOWN = 300


@dataclass(frozen=True, slots=True)
class _Process:
    """A worker under way; its output goes to a file, because a pipe that nobody reads would stop it."""

    order: Order
    running: subprocess.Popen[bytes]
    output: Path
    deadline: float


def run_section(section: Section, order: Order, seconds: float, rows: Callable[[], dict[tuple[str, str], Row]]) -> None:
    """Run the cases of `order`; on return each has a row.

    Args:
        section: what they belong to.
        order: all cases to run; it is split among processes.
        seconds: when everything still running is killed.
        rows: reads the rows of this run so far.
    """
    end = time.monotonic() + seconds
    jobs = max(min(section.jobs, (os.cpu_count() or 1) - 1), 1)
    waiting = _shares(order, len(order.names) if section.isolated and not order.scale.toy else jobs)
    under_way: list[_Process] = []
    with tempfile.TemporaryDirectory() as folder:
        try:
            while waiting or under_way:
                while waiting and len(under_way) < jobs and time.monotonic() < end:
                    under_way.append(_start(waiting.pop(0), section, end, Path(folder), jobs))
                if not under_way:
                    break
                time.sleep(_POLL_S)
                for process in [process for process in under_way if _is_over(process)]:
                    under_way.remove(process)
                    rest = _finish(process, section, rows())
                    waiting = [rest, *waiting] if rest.names else waiting
        finally:
            for process in under_way:
                _kill(process)
    left = [name for share in waiting for name in share.names]
    _append(order, left, f"not started: the section's {seconds:.0f} s were over")


def _shares(order: Order, count: int) -> list[Order]:
    """What each of `count` processes gets, in the order in which they start."""
    count = min(count, len(order.names))
    return [replace(order, names=order.names[i::count]) for i in range(count)]


def _start(order: Order, section: Section, end: float, folder: Path, jobs: int) -> _Process:
    command = [sys.executable, "-m", "bench.device.worker"]
    handle, output = tempfile.mkstemp(dir=folder)
    # Every worker takes every core otherwise, with Inductor's compilers and with torch's threads.
    cores = str(max((os.cpu_count() or 1) // jobs, 1))
    environment = {"TORCHINDUCTOR_COMPILE_THREADS": cores, "OMP_NUM_THREADS": cores, **os.environ}
    # A process group of its own, so that compilers that a worker starts die with it.
    running = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=handle, stderr=handle, cwd=ROOT, start_new_session=True, env=environment
    )
    os.close(handle)
    assert running.stdin is not None
    with suppress(BrokenPipeError):
        running.stdin.write(order.to_json().encode())
        running.stdin.close()
    deadline = min(end, time.monotonic() + section.case_s * len(order.names))
    return _Process(order, running, Path(output), deadline)


def _is_over(process: _Process) -> bool:
    return process.running.poll() is not None or time.monotonic() > process.deadline


def _finish(process: _Process, section: Section, rows: dict[tuple[str, str], Row]) -> Order:
    """Collect a process; a case that it did not survive gets a row. Returns what remains to be run."""
    status = process.running.poll()
    _kill(process)
    left = [name for name in process.order.names if (section.name, name) not in rows]
    if left and status != POISONED:
        error = "killed: out of time" if status is None else f"process ended with {status}: {_last_words(process)}"
        _append(process.order, left[:1], error)
        left = left[1:]
    return replace(process.order, names=tuple(left))


def _kill(process: _Process) -> None:
    """End a worker and everything that it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.running.pid, signal.SIGKILL)
    process.running.wait()


def _last_words(process: _Process) -> str:
    return " ".join(process.output.read_text(errors="replace").split())[-_SHOWN:]


def _append(order: Order, names: Sequence[str], error: str) -> None:
    about = {**order.about, "section": order.section}
    append_rows(Path(order.out), ({**about, "case": name, "error": error} for name in names))
