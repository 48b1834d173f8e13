"""Lets the processes of one section compile at once and time alone.

A lock on one file: shared while a process compiles, exclusive while it times. So nothing is timed before all that
compile have come as far, and nothing compiles beside what is timed.
"""

import contextlib
import fcntl
import tempfile
from collections.abc import Iterator
from pathlib import Path

_LOCK = Path(tempfile.gettempdir()) / "fxcompress-bench-device.lock"


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Hold a share of the machine; waits while a process is `alone`."""
    with _held(fcntl.LOCK_SH):
        yield


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Hold the machine; waits for all others."""
    with _held(fcntl.LOCK_EX):
        yield


@contextlib.contextmanager
def _held(kind: int) -> Iterator[None]:
    # Closing the file releases the lock, and so does the end of a process that is killed.
    with _LOCK.open("w") as file:
        fcntl.flock(file, kind)
        yield
