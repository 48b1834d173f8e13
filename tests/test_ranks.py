"""Ranks that compile the same make the same plans; ranks that do not are told apart."""

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fxcompress
from fxcompress.errors import PlanError
from fxcompress.ranks import difference

ONE = [("a", "1"), ("b", "2")]


def test_differences_are_named() -> None:
    assert difference(ONE, ONE) is None
    assert "fingerprint c there" in str(difference(ONE, [("a", "1"), ("c", "2")]))
    assert "planned differently" in str(difference(ONE, [("a", "1"), ("b", "3")]))
    assert difference(ONE, ONE[:1]) == "1 graphs there and 2 here"


class Deep(nn.Module):
    """A megabyte of weights per layer: DDP's smallest bucket."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(512, 512) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = nn.functional.gelu(layer(x))
        return x


def _step(model: nn.Module, options: dict[str, Any], rank: int) -> None:
    compiled = torch.compile(model, backend="actcomp", options={"inner": "aot_eager", "min_bytes": 1024, **options})
    compiled(torch.randn(64, 512, generator=torch.Generator().manual_seed(rank))).square().mean().backward()


def _rank(rank: int, store: str, out: str) -> None:
    """Train one step of a model that DDP splits into two graphs, compare; then once more with unequal options."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{store}", rank=rank, world_size=2)
    torch.manual_seed(0)
    model = nn.parallel.DistributedDataParallel(Deep(), bucket_cap_mb=1)
    _step(model, {"budget": 4_000_000}, rank)
    graphs = fxcompress.compare_ranks()
    gradients = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    torch._dynamo.reset()
    _step(model, {"bits": 2 + 2 * rank, "operand_bits": 8 - 4 * rank}, rank)
    try:
        fxcompress.compare_ranks()
        said = "nothing"
    except PlanError as error:
        said = str(error)
    torch.save((graphs, gradients, said), f"{out}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_of_ddp(tmp_path: Path) -> None:
    start = functools.partial(_rank, store=str(tmp_path / "store"), out=str(tmp_path))
    torch.multiprocessing.spawn(start, nprocs=2)
    (graphs, first, said), (again, second, _) = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert graphs == again and graphs > 1, "DDP splits the model"
    assert torch.equal(first, second)
    assert "planned differently" in said
