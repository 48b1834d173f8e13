"""Makes the harness of these tests importable, and gives every test a fresh compiler."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from fxcompress import ledger

HERE = str(Path(__file__).resolve().parent)
if HERE not in sys.path:
    sys.path.append(HERE)


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    """No compiled code, report or default dtype is carried from one test to the next."""
    torch._dynamo.reset()
    ledger.clear()
    yield
    torch._dynamo.reset()
    ledger.clear()
