"""Bytes saved for the backward and predicted peaks of models of real size, over PyTorch's minimum cut.

    python -m bench.min_cut [--models gpt2_small,…] [--variants "4 bit;4 bit 24%"] [--json file]

Each model is traced once on fake tensors, in bf16 (ResNet-50 and ViT-B under autocast), and partitioned for an H200 as
each variant says: no activation is allocated and nothing compiled. A share in a variant's name is its `budget`. Peaks
are those of the memory model for a GPU, without parameters and their gradients. Saved bytes are compared without what
the loss saves: logits, or, in chunks, gradients. What is computed again is a share of the step's seconds as modelled
(`fxcompress.costs`), PyTorch's own included. A budget that cannot be kept is a line with the lowest peak found.
"""

import argparse
import functools
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.table import Table
from torch import fx

from bench.compat.fake_cuda import gpu_layouts
from bench.models.vocab import GPT2_VOCABULARY, LLAMA_VOCABULARY, SIMULATED
from bench.models.zoo import Case, LossOf
from bench.peaks import predict, trace_large
from bench.record import append_rows, environment, megabytes, ratio, wide_console
from bench.step_graphs import Joint, partition, plain, saved_nbytes, trace_bf16
from bench.widths import WIDTHS, options_of
from fxcompress import costs
from fxcompress.errors import BudgetError
from fxcompress.partition import ActcompPartitioner
from fxcompress.passes.alias import storage_nbytes
from fxcompress.passes.ops import GRADIENT

REFERENCE = "min-cut"


@dataclass(frozen=True, slots=True)
class Row:
    """One model under one variant; bytes."""

    model: str
    variant: str
    saved_bytes: int
    loss_bytes: int
    """Of the saved bytes, those of logits, or of the loss's gradients that stand for them."""
    peak_bytes: int
    again_share: float
    """Modelled time of what the backward computes again, as a share of the step's."""
    seconds: float

    @property
    def rest_bytes(self) -> int:
        """What is saved besides."""
        return self.saved_bytes - self.loss_bytes


def swin_tiny() -> Case:
    """Swin-T as published, 128 images."""
    from transformers import SwinConfig, SwinForImageClassification

    images, labels = torch.randn(128, 3, 224, 224), torch.randint(0, 2, (128,))
    module = LossOf(SwinForImageClassification(SwinConfig())).train()
    return module, (), {"pixel_values": images, "labels": labels}


MODELS: Mapping[str, Callable[[], Joint]] = {
    **{name: functools.partial(trace_bf16, factory) for name, factory in {**SIMULATED, "swin_tiny": swin_tiny}.items()},
    "resnet50": functools.partial(trace_large, "resnet50", 256, toy=False),
    "vit_base": functools.partial(trace_large, "vit_base", 128, toy=False),
}
WORDS: Mapping[str, int] = {"gpt2_small": GPT2_VOCABULARY, "llama_1b": LLAMA_VOCABULARY}


def compare(model: str, names: Sequence[str]) -> list[Row]:
    """One model under PyTorch's cut, and under ours."""
    joint = MODELS[model]()
    rows = []
    for name in (REFERENCE, *names):
        start = time.perf_counter()
        try:
            pair = partition(joint, plain if name == REFERENCE else ActcompPartitioner(options_of(name)))
        except BudgetError as error:
            print(f"{model}, {name}: {error}")
            continue
        seconds = time.perf_counter() - start
        saved = saved_nbytes(pair[0], joint.num_fwd_outputs)
        of_loss = loss_nbytes(pair[0], joint.num_fwd_outputs, WORDS.get(model, 0))
        with gpu_layouts():
            again_share = costs.repeated_s(*pair) / costs.step_s(joint.gm)
        rows.append(Row(model, name, saved, of_loss, predict(pair, joint.num_fwd_outputs), again_share, seconds))
    return rows


def loss_nbytes(fw: fx.GraphModule, num_fwd_outputs: int, words: int) -> int:
    """Bytes of the saved values with a column per word, and of the gradients that chunks save instead."""
    (output,) = fw.graph.find_nodes(op="output")
    saved = {node for node in output.args[0][num_fwd_outputs:] if isinstance(node, fx.Node)}
    of_loss = [node for node in saved if _columns(node) == words or node.meta.get("actcomp") == GRADIENT]
    return sum(storage_nbytes(node.meta["val"]) for node in of_loss)


def _columns(node: fx.Node) -> int | None:
    val = node.meta["val"]
    return val.shape[-1] if isinstance(val, torch.Tensor) and val.dim() > 1 and node.op != "placeholder" else None


def table(rows: Sequence[Row]) -> Table:
    """One line per variant."""
    columns = ("variant", "saved MB", "of the loss MB", "fewer", "peak MB", "lower", "again", "seconds")
    view = Table(*columns, title=rows[0].model)
    reference = rows[0]
    for row in rows:
        view.add_row(
            row.variant,
            megabytes(row.saved_bytes),
            megabytes(row.loss_bytes),
            ratio(reference.rest_bytes, row.rest_bytes),
            megabytes(row.peak_bytes),
            ratio(reference.peak_bytes, row.peak_bytes),
            f"{row.again_share:.1%}",
            f"{row.seconds:.1f}",
        )
    return view


def main() -> int:
    """Print one table per model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--variants", default=";".join(WIDTHS), help="separated by semicolons")
    parser.add_argument("--json", type=Path, help="append one JSON line per row to this file")
    arguments = parser.parse_args()
    for model in arguments.models.split(","):
        rows = compare(model, arguments.variants.split(";"))
        wide_console().print(table(rows))
        if arguments.json:
            about = {"bench": "min_cut", **environment()}
            append_rows(arguments.json, ({**about, **asdict(row)} for row in rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
