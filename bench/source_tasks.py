"""The four tasks on which the published systems are compared: models, batches and what counts as quality."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bench import data
from bench.models.digits_nets import CNN, ViT, WithLoss
from bench.models.gcn import GCN, club
from bench.models.gpt import GPT, GPTConfig

Batch = tuple[Tensor, ...]
DIGITS_BATCH = 32
TEXT_BATCH = 4
SHOWN = 1
"""Members of each club whose label is shown to the GCN."""
HELD_OUT_SEED = 2**31
HELD_OUT_BATCHES = 16
CONFIG = GPTConfig(layers=3, context=128)


@dataclass(frozen=True, slots=True)
class Task:
    """One task. `quality` is computed without compiling, in eval mode."""

    build: Callable[[], nn.Module]
    """A module that returns its loss."""
    batches: Callable[[int, int], Sequence[Batch]]
    """Seed and number of steps → batches, all of one shape."""
    quality: Callable[[nn.Module, int], float]
    """Module and seed → held-out accuracy as a fraction, or held-out loss."""
    unit: str
    steps: int
    learning_rate: float
    min_bytes: int = 16384


def digits_batches(seed: int, steps: int) -> list[Batch]:
    """Full batches of shuffled images, epoch after epoch."""
    images, labels = data.digits(16).train
    generator = torch.Generator().manual_seed(seed)
    batches: list[Batch] = []
    while len(batches) < steps:
        order = torch.randperm(len(labels), generator=generator)
        full = order[: len(order) // DIGITS_BATCH * DIGITS_BATCH].view(-1, DIGITS_BATCH)
        batches += [(images[indices], labels[indices]) for indices in full]
    return batches[:steps]


def digits_accuracy(module: nn.Module, seed: int) -> float:
    """Share of held-out images classified right."""
    images, labels = data.digits(16).test
    network: nn.Module = module.get_submodule("network")
    return float((network(images).argmax(1) == labels).float().mean())


def text_batches(seed: int, steps: int) -> list[Batch]:
    """Random windows of the standard library's source text."""
    (text,) = data.stdlib_text().train
    return [
        data.text_batch(text, batch=TEXT_BATCH, time=CONFIG.context, seed=seed * 10**6 + step) for step in range(steps)
    ]


def text_loss(module: nn.Module, seed: int) -> float:
    """Mean loss over fixed held-out windows, nats per byte."""
    (text,) = data.stdlib_text().test
    windows = [
        data.text_batch(text, batch=TEXT_BATCH, time=CONFIG.context, seed=HELD_OUT_SEED + number)
        for number in range(16)
    ]
    return statistics.fmean(float(module(*window)) for window in windows)


def club_batches(seed: int, steps: int) -> list[Batch]:
    """The whole graph in each step; which members show their club depends on the seed."""
    _, labels = club()
    return [(torch.eye(len(labels)), labels, _shown(seed, labels))] * steps


def club_accuracy(module: nn.Module, seed: int) -> float:
    """Share of the members whose club was not shown that are classified right."""
    _, labels = club()
    assert isinstance(module, GCN)
    hidden = _shown(seed, labels) == 0
    return float((module.logits(torch.eye(len(labels))).argmax(1) == labels)[hidden].float().mean())


def _shown(seed: int, labels: Tensor) -> Tensor:
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    weights = torch.zeros(len(labels))
    for kind in range(2):
        weights[order[labels[order] == kind][:SHOWN]] = 1.0
    return weights


TASKS: Mapping[str, Task] = {
    "cnn": Task(lambda: WithLoss(CNN((16, 32, 64))), digits_batches, digits_accuracy, "accuracy", 126, 4e-3),
    "vit": Task(lambda: WithLoss(ViT()), digits_batches, digits_accuracy, "accuracy", 168, 2e-3),
    "gpt": Task(lambda: GPT(CONFIG), text_batches, text_loss, "nats/byte", 250, 2e-3),
    "gcn": Task(GCN, club_batches, club_accuracy, "accuracy", 60, 5e-3, min_bytes=1024),
}
