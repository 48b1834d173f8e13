"""What storing the tensors of fused attention in few bits does to its gradients: `python -m bench.attention_bits`.

The backward of fused attention computes the probabilities again, as exp(q·k − log-sum-exp), from the stored queries
and keys and the exact log-sum-exp. Where attention is sharp, an error of the exponent is one of the probabilities by a
factor, and rows do not sum to one any more. Errors are those of the gradients of q, k and v together, over their norm,
in fp32, by the standard deviation of the scores q·k/√d.
"""

import argparse
import math
import sys
from collections.abc import Collection
from pathlib import Path

import torch
from rich.table import Table
from torch import Tensor

from bench.record import append_rows, environment, wide_console
from fxcompress.options import Options
from fxcompress.passes.pick_codec import pick_codec

SCORES = (0.1, 1.0, 3.0, 6.0)
BITS = (8, 4, 2)
PARTS = ("q", "k", "v", "out")
STORED = {"q, k": ("q", "k"), "v, out": ("v", "out")}


def error(scores: float, stored: Collection[str], bits: int, seed: int) -> float:
    """Relative error of the gradients of q, k and v where the tensors `stored` went through `bits` bits."""
    generator = torch.Generator().manual_seed(seed)
    shape = (2, 4, 128, 32)
    q, k, v, gy = (torch.randn(shape, generator=generator) for _ in range(4))
    q, k = q * math.sqrt(scores), k * math.sqrt(scores)
    forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
    backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default
    out, log_sum_exp = forward(q, k, v, 0.0, True)
    kept = dict(zip(PARTS, (q, k, v, out), strict=True))
    exact = backward(gy, *kept.values(), log_sum_exp, 0.0, True)
    coded = {n: coarse(x, bits, seed + i) if n in stored else x for i, (n, x) in enumerate(kept.items())}
    got = backward(gy, *coded.values(), log_sum_exp, 0.0, True)
    away = sum(float((a - b).double().square().sum()) for a, b in zip(got, exact, strict=True))
    return math.sqrt(away / sum(float(b.double().square().sum()) for b in exact))


def coarse(x: Tensor, bits: int, seed: int) -> Tensor:
    """`x` through the default codec of that width for operands."""
    codec, _ = pick_codec("propagating", Options(operand_bits=bits), None, None)
    columns = x.shape[-2] * x.shape[-1]
    parts = codec.encode(x.reshape(-1, columns), seed)
    return codec.decode(parts, columns, x.dtype).reshape(x.shape)


def main() -> int:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="append one JSON line per row to this file")
    arguments = parser.parse_args()
    view = Table("stored", "bits", *(f"scores {scores:g}" for scores in SCORES))
    rows = []
    for label, stored in STORED.items():
        for bits in BITS:
            found = [[error(scores, stored, bits, seed) for seed in range(arguments.seeds)] for scores in SCORES]
            medians = [sorted(each)[len(each) // 2] for each in found]
            view.add_row(label, str(bits), *(f"{median:.2g}" for median in medians))
            rows += [
                {"stored": label, "bits": bits, "scores_std": scores, "rel_err": median}
                for scores, median in zip(SCORES, medians, strict=True)
            ]
    wide_console().print(view)
    if arguments.json:
        about = {"bench": "attention_bits", "seeds": arguments.seeds, **environment()}
        append_rows(arguments.json, ({**about, **row} for row in rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
