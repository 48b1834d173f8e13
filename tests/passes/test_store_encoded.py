"""Which encoded tensors Inductor is told to write to memory, and that decodes cast last."""

import pytest
import torch

pytest.importorskip("triton")

from fxcompress import compat, pipeline
from fxcompress.codecs import lowering, planes
from fxcompress.options import Options
from fxcompress.passes.ops import op_name
from fxcompress.testing_graphs import Pair, capture


def residual() -> Pair:
    """A sum that is read in front of the third product and behind it."""

    def function(x: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
        total = x @ weights[0] + x @ weights[1]
        total = total + (total * total) @ weights[2]
        return (total * total) @ weights[3]

    torch.manual_seed(0)
    return capture(function, [torch.randn(64, 64, requires_grad=True) for _ in range(5)])


def stored(pair: Pair, **options: object) -> list[str]:
    """The nodes that are marked after a run at these widths."""
    chosen: dict[str, object] = {"inner": "inductor", "min_bytes": 64, "disable_passes": ["outline"], **options}
    pipeline.run(pair.fw, pair.bw, Options(**chosen))  # type: ignore[arg-type]
    return [node.name for node in pair.fw.graph.nodes if compat.is_stored(node)]


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decide as for a GPU, on tensors of the CPU."""
    monkeypatch.setattr(lowering, "wanted", lambda _: True)
    monkeypatch.setattr(planes, "wanted", lambda _: True)


@pytest.mark.usefixtures("on_gpu")
def test_what_a_sum_behind_a_product_reads_is_stored() -> None:
    pair = residual()
    marked = stored(pair, bits=8, operand_bits=8)
    (total,) = [node for node in pair.fw.graph.nodes if {"mul", "add"} <= {op_name(user) for user in node.users}]
    assert marked == [total.name]


@pytest.mark.usefixtures("on_gpu")
def test_what_a_kernel_of_ours_reads_is_stored() -> None:
    pair = residual()
    assert (
        len(stored(pair, bits=4, operand_bits=4, rounding="stochastic")) == len(compat.triton_nodes(pair.fw.graph)) > 1
    )


@pytest.mark.usefixtures("on_gpu")
def test_the_pass_can_be_left_out() -> None:
    assert stored(residual(), disable_passes=["outline", "store_encoded"]) == []


def test_nothing_is_stored_on_a_cpu() -> None:
    assert stored(residual()) == []
