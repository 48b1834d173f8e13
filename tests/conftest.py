"""Plans made by hand, for everything that reads plans without a graph."""

import os
from dataclasses import replace

import pytest
import torch

from fxcompress.facts import Peak, SavedTensor
from fxcompress.plan import Decision, GraphPlan, Plan


def pytest_configure() -> None:
    """Where tests run side by side, each worker has one core, and so has what it starts."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        torch.set_num_threads(1)


def saved_tensor(index: int, name: str, layer: str) -> SavedTensor:
    return SavedTensor(
        index=index,
        name=name,
        storage=name,
        layer=layer,
        source="model.py:12",
        op="aten.addmm.default",
        shape=(8, 1024),
        stride=(1024, 1),
        dtype="float32",
        nbytes=32768,
        storage_nbytes=32768,
        need="operand",
        consumers=("aten.mm.default",),
    )


@pytest.fixture(autouse=True)
def _width(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables fill what COLUMNS states, and test runners set it."""
    monkeypatch.delenv("COLUMNS", raising=False)


@pytest.fixture
def plan() -> Plan:
    """Twelve equal layers, then a mask with a symbolic size, a statistic, a view and a parameter."""
    params = (("bits", 4), ("group", 128), ("rounding", "stochastic"), ("zero_preserving", False))
    decisions = [
        Decision(saved_tensor(i, f"addmm_{i}" if i else "addmm", f"h.{i}.mlp"), "affine", params, 4352, "leaf gradient")
        for i in range(12)
    ]
    mask = replace(
        saved_tensor(12, "gt", "h.0.act"), op="aten.gt.Scalar", shape=("s0", 1024), dtype="bool", need="predicate",
        nbytes=8192, storage_nbytes=8192, values="{0, 1}",
    )  # fmt: skip
    mean = replace(
        saved_tensor(13, "mean", "norm"), need="statistic", nbytes=64, storage_nbytes=64, refusal="too small"
    )
    view = replace(saved_tensor(14, "view", "h.3.mlp"), storage="addmm_3")
    weight = replace(saved_tensor(15, "primals_1", ""), refusal="parameter or input of the caller")
    decisions += [
        Decision(mask, "valueset", (("count", 2), ("lo", 0), ("step", 1)), 1024, "values in {0, 1}, exact"),
        Decision(mean, "keep", (), 64, "too small"),
        Decision(view, "shared", (), 0, "view of addmm_3"),
        Decision(weight, "keep", (), 32768, "parameter or input of the caller"),
    ]
    graph = GraphPlan(
        fingerprint="0123456789abcdef",
        decisions=tuple(decisions),
        saved_bytes_before=12 * 32768 + 8192 + 64,
        saved_bytes_after=12 * 4352 + 1024 + 64,
        plain_saved_bytes=12 * 32768,
        peak_before=Peak(500000, "backward:mm", 450000, 500000, (1, 2, 3)),
        peak_after=Peak(200000, "backward:mm_3", 180000, 200000, (1, 2)),
    )
    return Plan((graph,), (("bits", 4), ("codec", "affine"), ("lossy", True)), "0.1.0", "2.13.0")
