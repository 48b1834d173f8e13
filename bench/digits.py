"""CNN, ViT and binary CNN on scikit-learn's digits, plain Inductor against actcomp: `python -m bench.digits`.

Both variants train copies of one model on the same batches in lock-step, for several seeds; the binary net is compiled
with exact codecs only. bench/README.md defines the numbers.
"""

import argparse
import copy
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

from bench import data, measure
from bench.models.digits_nets import BNN, CNN, ViT, WithLoss
from bench.record import append_rows, environment, interval, wide_console
from bench.side_by_side import Side, prepare, summary
from bench.variants import REFERENCE, chosen

BATCH = 64


@dataclass(frozen=True, slots=True)
class Net:
    """One network, the image side it takes and what it is compiled with."""

    build: Callable[[], nn.Module]
    side: int
    variants: str
    learning_rate: float


NETS: Mapping[str, Net] = {
    "cnn": Net(CNN, 16, "plain,actcomp", 2e-3),
    "vit": Net(ViT, 16, "plain,actcomp", 1e-3),
    "bnn": Net(BNN, 8, "plain,actcomp-exact", 5e-3),
}


@dataclass(frozen=True, slots=True)
class Run:
    """One variant trained from one seed: held-out accuracy as a fraction, last epoch's mean loss, seconds per step."""

    variant: str
    seed: int
    accuracy: float
    loss: float
    step_s: tuple[float, ...]


def train(sides: Sequence[Side], net: Net, split: data.Split, seed: int, epochs: int) -> list[Run]:
    """Train all sides from the same initial weights on the same batches, one step each in turn."""
    torch.manual_seed(seed)
    fresh = WithLoss(net.build()).state_dict()
    for side in sides:
        side.job.module.load_state_dict(fresh)
    optimizers = [torch.optim.AdamW(side.job.module.parameters(), lr=net.learning_rate) for side in sides]
    seconds: list[list[float]] = [[] for _ in sides]
    losses: list[list[float]] = [[] for _ in sides]
    batches = _batches(split, seed, epochs)
    for step, batch in enumerate(track(batches, f"seed {seed}", console=Console(stderr=True), transient=True)):
        for index, (side, optimizer) in enumerate(zip(sides, optimizers, strict=True)):
            # Dropout draws from the global stream: both sides see the same masks.
            torch.manual_seed(seed * len(batches) + step)
            loss, elapsed = side.train_step(batch, optimizer, bf16=False)
            losses[index].append(loss)
            seconds[index].append(elapsed)
    last = len(batches) // epochs
    return [
        Run(
            side.variant.name,
            seed,
            accuracy(side.job.module, split),
            sum(losses[index][-last:]) / last,
            tuple(seconds[index]),
        )
        for index, side in enumerate(sides)
    ]


@torch.no_grad()
def accuracy(module: nn.Module, split: data.Split) -> float:
    """Share of held-out images classified right, computed without compiling, in eval mode."""
    images, labels = split.test
    module.eval()
    network: nn.Module = module.get_submodule("network")
    right = (network(images).argmax(1) == labels).float().mean()
    module.train()
    return float(right)


def compare(name: str, net: Net, *, seeds: int, epochs: int, inner: str, json: Path | None, console: Console) -> None:
    """Measure and train one network, print its table and accuracies, append its rows."""
    split = data.digits(net.side)
    torch.manual_seed(0)
    module = WithLoss(net.build())
    first = (split.train[0][:BATCH], split.train[1][:BATCH])
    copies = [(variant, copy.deepcopy(module)) for variant in chosen(net.variants, inner)]
    sides = prepare(copies, first, inner=inner, bf16=False)
    runs = [run for seed in range(seeds) for run in train(sides, net, split, seed, epochs)]
    by_name = {side.variant.name: [run for run in runs if run.variant == side.variant.name] for side in sides}
    reference = by_name[REFERENCE]
    ratios = {variant: _step_ratio(own, reference) for variant, own in by_name.items()}
    console.print(f"{name}: batch {BATCH} x {net.side}x{net.side}, {epochs} epochs x {seeds} seeds")
    console.print(summary(sides, ratios))
    differences = {
        variant: interval([a.accuracy - b.accuracy for a, b in zip(own, reference, strict=True)])
        for variant, own in by_name.items()
    }
    for variant, own in by_name.items():
        listed = " ".join(f"{run.accuracy:.4f}" for run in own)
        against = "" if variant == REFERENCE else f"   minus {REFERENCE}: {differences[variant]} (95 %)"
        console.print(f"{variant:>14}  held-out accuracy by seed: {listed}{against}")
    if json:
        about = {"bench": "digits", "net": name, "epochs": epochs, **environment()}
        rows = [{**about, **s.row(), "step_ratio": ratios[s.variant.name]} for s in sides]
        append_rows(json, ({**row, "runs": [asdict(r) for r in by_name[row["variant"]]]} for row in rows))


def _batches(split: data.Split, seed: int, epochs: int) -> list[tuple[Tensor, Tensor]]:
    """Full batches only, so that every step has the compiled shape."""
    images, labels = split.train
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for _ in range(epochs):
        order = torch.randperm(len(labels), generator=generator)
        full = order[: len(order) // BATCH * BATCH].view(-1, BATCH)
        batches += [(images[indices], labels[indices]) for indices in full]
    return batches


def _step_ratio(own: Sequence[Run], reference: Sequence[Run]) -> float:
    ours, theirs = ([second for run in runs for second in run.step_s] for runs in (own, reference))
    return measure.paired_ratio(ours, theirs)


def main() -> int:
    """Run the chosen networks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", default="cnn,vit,bnn", help="comma-separated")
    parser.add_argument("--seeds", type=int, default=5, help="paired seeds")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--inner", default="inductor", choices=("inductor", "aot_eager"))
    parser.add_argument("--quick", action="store_true", help="one epoch, two seeds")
    parser.add_argument("--json", type=Path, help="append one JSON line per variant to this file")
    arguments = parser.parse_args()
    names = arguments.nets.split(",")
    if unknown := [name for name in names if name not in NETS]:
        parser.error(f"unknown net {unknown[0]!r}; known: {', '.join(NETS)}")
    seeds, epochs = (2, 1) if arguments.quick else (arguments.seeds, arguments.epochs)
    console = wide_console()
    for name in names:
        compare(
            name, NETS[name], seeds=seeds, epochs=epochs, inner=arguments.inner, json=arguments.json, console=console
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
