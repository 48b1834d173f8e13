"""Sharded and pipelined training on two ranks: exact codecs are bit-equal to none, and lossy ones near them."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.pipelining import PipelineStage, Schedule1F1B
from torch.distributed.tensor import Shard, distribute_module, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, SequenceParallel, parallelize_module

import fxcompress
from fxcompress import ledger

BACKENDS: tuple[dict[str, Any], ...] = (
    {"backend": "aot_eager"},
    {"backend": "actcomp", "options": {"inner": "aot_eager", "min_bytes": 64, "lossy": False}},
    {"backend": "actcomp", "options": {"inner": "aot_eager", "min_bytes": 64}},
)
Gradients = dict[str, Tensor]


class Mlp(nn.Module):
    """A normalized residual block of 64 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(64), nn.Linear(64, 128), nn.Linear(128, 64)

    def forward(self, x: Tensor) -> Tensor:
        return x + nn.functional.relu(self.down(nn.functional.gelu(self.up(self.norm(x)))))


class Sequence(Mlp):
    """The same without the residual sum, whose two sides would be sharded differently."""

    def forward(self, x: Tensor) -> Tensor:
        return self.down(nn.functional.gelu(self.up(self.norm(x))))


class Blocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Mlp() for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


def batch(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def gradients(model: nn.Module, loss: Tensor) -> Gradients:
    loss.backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {name: grad.full_tensor() if hasattr(grad, "full_tensor") else grad for name, grad in found.items()}


def _sharded(rank: int, compiler: dict[str, Any], policy: MixedPrecisionPolicy, *, whole: bool) -> Gradients:
    model = Blocks()
    for block in model.blocks:
        if not whole:
            block.compile(**compiler)
        fully_shard(block, mp_policy=policy)
    fully_shard(model, mp_policy=policy)
    run = torch.compile(model, **compiler) if whole else model
    return gradients(model, run(batch(rank, 32, 64)).square().mean())


def _tensor_parallel(rank: int, compiler: dict[str, Any]) -> Gradients:
    model = Mlp()
    parallelize_module(model, init_device_mesh("cpu", (2,)), {"up": ColwiseParallel(), "down": RowwiseParallel()})
    return gradients(model, torch.compile(model, **compiler)(batch(3, 32, 64)).square().mean())


def _sequence_parallel(rank: int, compiler: dict[str, Any]) -> Gradients:
    plan = {
        "norm": SequenceParallel(),
        "up": ColwiseParallel(input_layouts=Shard(1)),
        "down": RowwiseParallel(output_layouts=Shard(1)),
    }
    model = Sequence()
    parallelize_module(model, init_device_mesh("cpu", (2,)), plan)  # type: ignore[arg-type]
    x = batch(3, 2, 32, 64).chunk(2, 1)[rank].contiguous()
    return gradients(model, torch.compile(model, **compiler)(x).square().mean())


def _distributed_tensors(rank: int, compiler: dict[str, Any]) -> Gradients:
    mesh = init_device_mesh("cpu", (2,))
    model = distribute_module(Sequence(), mesh)
    x = distribute_tensor(batch(3, 32, 64), mesh, [Shard(0)])
    return gradients(model, torch.compile(model, **compiler)(x).to_local().square().mean())


def _pipelined(rank: int, compiler: dict[str, Any]) -> Gradients:
    model = Mlp()
    model.compile(**compiler)
    stage = PipelineStage(model, rank, 2, torch.device("cpu"))
    schedule = Schedule1F1B(stage, n_microbatches=4, loss_fn=lambda y, target: (y - target).square().mean())
    if rank == 0:
        schedule.step(batch(3, 32, 64))
    else:
        schedule.step(target=batch(4, 32, 64))
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


FULL, HALF = MixedPrecisionPolicy(), MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
PROGRAMS: dict[str, Callable[[int, dict[str, Any]], Gradients]] = {
    "FSDP2, blocks compiled": functools.partial(_sharded, policy=FULL, whole=False),
    "FSDP2 in bf16, blocks compiled": functools.partial(_sharded, policy=HALF, whole=False),
    "FSDP2, model compiled": functools.partial(_sharded, policy=FULL, whole=True),
    "tensor parallel": _tensor_parallel,
    "sequence parallel": _sequence_parallel,
    "distributed tensors": _distributed_tensors,
    "pipelined": _pipelined,
}


def _rank(rank: int, out: str) -> None:
    """Every program under every backend; what came out goes to `out`."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{out}/store", rank=rank, world_size=2)
    results = {}
    for name, program in PROGRAMS.items():
        for i, compiler in enumerate(BACKENDS):
            torch._dynamo.reset()
            ledger.clear()
            torch.manual_seed(0)
            found = program(rank, compiler)
            results[name, i] = (found, sum(graph.saved_bytes_after for graph in fxcompress.reports()))
            results[name, i, "unchanged"] = ledger.unchanged()
    torch.save(results, f"{out}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_ranks(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(functools.partial(_rank, out=str(tmp_path)), nprocs=2)
    for rank in range(2):
        results = torch.load(tmp_path / f"{rank}.pt")
        for name in PROGRAMS:
            (plain, _), (exact, before), (lossy, after) = (results[name, i] for i in range(3))
            assert plain.keys() == exact.keys() == lossy.keys() and plain, name
            assert all(torch.equal(plain[key], exact[key]) for key in plain), name
            error = sum(float((plain[key] - lossy[key]).square().sum()) for key in plain)
            assert error < 0.1**2 * sum(float(plain[key].square().sum()) for key in plain), name
            assert not results[name, 1, "unchanged"] and not results[name, 2, "unchanged"], name
            assert after < 0.6 * before, name
