"""Running ranges against each step's own, on the attention of a ViT in training: `python -m bench.running_ranges`.

A plain ViT trains on digits; at every step q, k and v of each layer are stored at 8 bits with one range per head, and
read back: with the range of the step (`affine`), with running ones (`running`: decay 0.9, values outside clamp) and as
Mesa's own code does with those (no clamp above: codes wrap around). The payloads have equal bytes. An error is
‖x̂ − x‖/‖x‖.
"""

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from bench.record import append_rows, environment
from bench.source_tasks import TASKS
from fxcompress import ranges
from fxcompress.codecs.affine import Affine
from fxcompress.codecs.base import Codec, payload_nbytes
from fxcompress.codecs.running import Running

HEADS, DIM, BITS = 12, 16, 8
"""q, k and v of four heads behind one projection, as `ViT` has them."""
KINDS = ("own", "running", "wrapping")


@dataclass(slots=True)
class Layer:
    """What the steps gave for one attention layer."""

    errors: dict[str, list[float]] = field(default_factory=lambda: {kind: [] for kind in KINDS})
    outside: list[float] = field(default_factory=list)
    """Share of elements outside the running range."""
    nbytes: tuple[int, int] = (0, 0)
    """Payload with own and with running ranges."""


def observe(layer: Layer, name: str, projected: Tensor) -> None:
    """Store what one layer's projection gave in one step, `[..., HEADS · DIM]`, in the three ways."""
    rows = projected.detach().reshape(-1)
    own = Affine(bits=BITS, heads=HEADS, dim=DIM)
    running = Running(bits=BITS, heads=HEADS, dim=DIM, key=name)
    layer.errors["own"].append(_error(own, rows))
    layer.errors["running"].append(_error(running, rows))
    low, high = ranges.state_dict()[name]
    heads = rows.reshape(-1, HEADS, DIM)
    steps = (heads - low[:, None]) * ((2**BITS - 1) / (high - low))[:, None]
    codes = (steps + torch.rand(steps.shape)).floor().clamp_min(0) % 2**BITS
    back = low[:, None] + codes * ((high - low) / (2**BITS - 1))[:, None]
    layer.errors["wrapping"].append(float((back - heads).norm() / heads.norm()))
    layer.outside.append(float(((steps < 0) | (steps > 2**BITS - 1)).float().mean()))
    layer.nbytes = (payload_nbytes(own, 1, len(rows), rows.dtype), payload_nbytes(running, 1, len(rows), rows.dtype))


def _error(codec: Codec, rows: Tensor) -> float:
    back = codec.decode(codec.encode(rows, 1), len(rows), rows.dtype)
    return float((back - rows).norm() / rows.norm())


def train(steps: int) -> list[Layer]:
    """Train one ViT for so many steps of `bench.sources`' task, and observe its attention layers."""
    ranges.clear()
    torch.manual_seed(0)
    task = TASKS["vit"]
    network = task.build()
    names = [name for name, module in network.named_modules() if name.endswith("qkv")]
    layers = {name: Layer() for name in names}

    def hook(name: str) -> None:
        def seen(_: nn.Module, __: object, result: Tensor) -> None:
            observe(layers[name], name, result)

        network.get_submodule(name).register_forward_hook(seen)

    for name in names:
        hook(name)
    optimizer = torch.optim.AdamW(network.parameters(), lr=task.learning_rate)
    for batch in task.batches(0, steps):
        optimizer.zero_grad()
        network(*batch).backward()
        optimizer.step()
    return list(layers.values())


def table(layers: Sequence[Layer]) -> str:
    """Markdown: mean over steps, and the worst step, per layer."""
    lines = ["| layer | own range | running | Mesa's wrapping | outside the running range |", "|---|---|---|---|---|"]
    for number, layer in enumerate(layers):
        cells = [f"{statistics.fmean(found):.4f}, worst {max(found):.4f}" for found in layer.errors.values()]
        lines.append(f"| {number} | {' | '.join(cells)} | {100 * statistics.fmean(layer.outside):.3f} % |")
    return "\n".join(lines)


def main() -> None:
    """Train, print, and append one JSON line per layer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=168)
    parser.add_argument("--json", type=Path, help="append one JSON line per layer to this file")
    arguments = parser.parse_args()
    layers = train(arguments.steps)
    print(table(layers))
    if arguments.json:
        about = {"bench": "running_ranges", "steps": arguments.steps, **environment()}
        append_rows(
            arguments.json,
            (
                {
                    **about,
                    "layer": number,
                    "errors": {kind: statistics.fmean(found) for kind, found in layer.errors.items()},
                    "worst": {kind: max(found) for kind, found in layer.errors.items()},
                    "outside": statistics.fmean(layer.outside),
                    "nbytes": layer.nbytes,
                }
                for number, layer in enumerate(layers)
            ),
        )


if __name__ == "__main__":
    main()
