"""How far from float64 are the gradients of a bf16 model, under plain Inductor and with logits in chunks?

    python -m bench.precision [--models bytegpt,gpt2] [--batches 12] [--json file]

A single batch says little: which of two roundings of one sum lands nearer is chance, and of a small parameter it moves
the distance by tens of percent. So each variant's distance is divided by plain Inductor's on the same batch, and the
geometric mean over batches is printed with its 95 % interval. Nothing is stored with a loss; dropout is off.
"""

import argparse
import copy
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor, nn

from bench.models.zoo import ZOO
from bench.record import Interval, append_rows, environment, interval, wide_console

VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "plain": {"backend": "inductor"},
    "whole": {"backend": "actcomp", "options": {"lossy": False, "loss_chunks": 0}},
    "chunks": {"backend": "actcomp", "options": {"lossy": False, "loss_chunks": 4}},
}
WHOLE = "all"
Batch = tuple[tuple[Any, ...], dict[str, Any]]


def main() -> int:
    """Print one table per model: what is certainly nearer or farther than under plain Inductor."""
    arguments = _arguments()
    for name in arguments.models.split(","):
        found = compare(name, arguments.batches, arguments.factor)
        view = Table("variant", "gradient of", "distance / plain's", title=name, title_justify="left")
        for variant, ratios in found.items():
            for key, ratio in ratios.items():
                if key == WHOLE or abs(ratio.mean) > ratio.half_width:
                    view.add_row(variant, key, f"{math.exp(ratio.mean):.3f} ± {ratio.half_width:.3f}")
        wide_console().print(view)
        if arguments.json:
            rows = (
                {"model": name, "variant": variant, "parameter": key, "ratio": math.exp(r.mean), "log_ci": r.half_width}
                for variant, ratios in found.items()
                for key, r in ratios.items()
            )
            about = {"bench": "precision", "batches": arguments.batches, "factor": arguments.factor, **environment()}
            append_rows(arguments.json, ({**row, **about} for row in rows))
    return 0


def compare(name: str, batches: int, factor: float = 1.0) -> dict[str, dict[str, Interval]]:
    """By variant and parameter: the logarithm of its distance to float64 over plain Inductor's."""
    module, args, kwargs = ZOO[name]()
    module = without_dropout(module).to(torch.bfloat16)
    wide = copy.deepcopy(module).double()
    drawn = [shuffled((args, kwargs), seed) for seed in range(batches)]
    exact = [gradients(wide, wide, batch, factor) for batch in drawn]
    away = {variant: _distances(module, how, drawn, exact, factor) for variant, how in VARIANTS.items()}
    plain = away.pop("plain")
    return {
        variant: {
            key: interval([math.log(ours[key] / theirs[key]) for ours, theirs in zip(found, plain, strict=True)])
            for key in plain[0]
            if all(ours[key] and theirs[key] for ours, theirs in zip(found, plain, strict=True))
        }
        for variant, found in away.items()
    }


def without_dropout(module: nn.Module) -> nn.Module:
    """The module, its dropout rates set to 0: each dtype would draw masks of its own."""
    for part in module.modules():
        for rate in ("p", "dropout"):
            if isinstance(getattr(part, rate, None), float):
                setattr(part, rate, 0.0)
    return module


def shuffled(batch: Batch, seed: int) -> Batch:
    """The batch with its integers drawn anew from among themselves."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(value: Any) -> Any:
        if not isinstance(value, Tensor) or value.dtype != torch.int64:
            return value
        return value.flatten()[torch.randint(0, value.numel(), value.shape, generator=generator)]

    args, kwargs = batch
    return tuple(map(drawn, args)), {name: drawn(value) for name, value in kwargs.items()}


def gradients(module: nn.Module, run: Callable[..., Tensor], batch: Batch, factor: float) -> dict[str, Tensor]:
    """Float64 copies of all gradients of one step, whose loss is multiplied by `factor` outside what is compiled."""
    module.zero_grad()
    (run(*batch[0], **batch[1]) * factor).backward()  # type: ignore[no-untyped-call]
    return {name: p.grad.double() for name, p in module.named_parameters() if p.grad is not None}


def _distances(
    module: nn.Module,
    how: Mapping[str, Any],
    batches: list[Batch],
    exact: list[dict[str, Tensor]],
    factor: float,
) -> list[dict[str, float]]:
    torch.compiler.reset()
    own = copy.deepcopy(module)
    run = torch.compile(own, **how)
    found = []
    for batch, expected in zip(batches, exact, strict=True):
        got = gradients(own, run, batch, factor)
        away = {name: float((got[name] - expected[name]).norm()) for name in expected}
        found.append({**away, WHOLE: math.hypot(*away.values())})
    return found


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.precision", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", default="bytegpt,gpt2,llama,t5", help="comma-separated names of the zoo")
    parser.add_argument("--batches", type=int, default=12)
    parser.add_argument("--factor", type=float, default=1.0, help="multiplies the loss outside the compiled function")
    parser.add_argument("--json", type=Path, help="append rows to this file")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
