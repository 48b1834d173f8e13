"""Published systems by name: `options={"preset": "division"}`. Torch-free.

A preset is a set of options and nothing else: it stands for what its authors save, and how coarsely, under our rules of
what may be lossy. `fxcompress presets` prints each with its source and with where we deviate, and why. An option that
is given beside a preset replaces the preset's.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from fxcompress.errors import OptionError, nearest

NAME = "preset"
_ALWAYS = (
    "masks, pooling indices and other yes/no answers are stored exactly in bits; nothing discontinuous is read from a "
    "lossy value",
    "logits and operands of attention kernels get 8 bits or more: at 2 bits with an exact log-sum-exp the gradient is "
    "10^6 off",
    "statistics, log-probabilities and tensors under min_bytes are kept; what is cheap to rebuild is rebuilt",
)
"""Deviations that hold for every preset; they are rules of fxcompress, and the same for its own defaults."""


@dataclass(frozen=True, slots=True)
class Preset:
    """One published system.

    Attributes:
        source: authors, title, venue.
        what: what it stores, in one line.
        options: the options it stands for; empty for one that is made by measuring.
        deviations: where these differ from the source, each with its reason.
        made_by: for a preset that is made by measuring, what to call.
    """

    source: str
    what: str
    options: Mapping[str, object]
    deviations: tuple[str, ...]
    made_by: str = ""

    @property
    def all_deviations(self) -> tuple[str, ...]:
        """Its own, and those that hold for every preset."""
        return (*self.deviations, *_ALWAYS)


PRESETS: Mapping[str, Preset] = {
    "actnn-l3": Preset(
        "Chen et al., ActNN: Reducing Training Memory Footprint via 2-Bit Activation Compressed Training, ICML 2021",
        "2-bit codes, one range per 256 elements, stochastic rounding",
        {"bits": 2, "operand_bits": 2, "group": 256, "rounding": "stochastic"},
        (
            "every sample has the same width, where ActNN spreads an average of 2 bits over samples by their range and "
            "gradient: a payload whose size depends on data cannot be planned",
        ),
    ),
    "comet": Preset(
        "Jin et al., COMET: A Novel Memory-Efficient Deep Learning Training Framework by Using Error-Bounded Lossy "
        "Compression, VLDB 2022",
        "4-bit codes within an error bound, zeros exact",
        {"codec": "bounded", "bits": 4, "operand_bits": 4, "error_bound": 0.25},
        (
            "a fixed rate instead of SZ's entropy coder: a size that is known only at run time saves nothing under a "
            "static plan, and at equal error the coder needs no fewer bits (3.3 to 3.6 at 0.1 standard deviations)",
            "the bound is a share of each tensor's root mean square; adaptive=True and fxcompress.bounds take it from "
            "the wanted spread of the gradient's error, by the exact formula instead of a fitted constant",
            "all activations, where COMET compresses those that convolutions read",
        ),
    ),
    "division": Preset(
        "Wang et al., DIVISION: Memory Efficient Training via Dual Activation Precision, ICML 2023",
        "block means in bf16 and a 2-bit residual with one range per (sample, channel)",
        {"codec": "dual", "bits": 2, "operand_bits": 2, "rounding": "stochastic"},
        (
            "cells are aligned (index // 8), where nearest resizing stretches cells of sizes that 8 does not divide: "
            "there, the mean of one cell would be spread over parts of others",
            "sequences have a range per (sample, channel), as maps have; the authors' code for text has one per sample",
            "what is no map or sequence, or smaller than 16 elements, gets 2-bit affine codes",
        ),
    ),
    "gact-l1": Preset(
        "Liu et al., GACT: Activation Compressed Training for Generic Network Architectures, ICML 2022",
        "4-bit codes, one range per 256 elements, stochastic rounding",
        {"bits": 4, "operand_bits": 4, "group": 256, "rounding": "stochastic"},
        ("a range is 32 bits (two bf16), where GACT keeps two numbers of the data's dtype",),
    ),
    "gact-l2": Preset(
        "Liu et al., GACT: Activation Compressed Training for Generic Network Architectures, ICML 2022",
        "4 bits on average, per tensor 1 to 8 by the measured sensitivity of the gradient",
        {},
        (
            "sensitivities come from two backward passes per tensor, where GACT runs three whole steps per tensor",
            "widths hold until a new plan is made; GACT adapts every 1000 steps",
        ),
        made_by="fxcompress.sensitivity.calibrate(model, loss, path), then options={'plan': path}",
    ),
    "mesa": Preset(
        "Pan et al., Mesa: A Memory-saving Training Framework for Transformers, 2021",
        "8-bit codes, one range per attention head",
        {"bits": 8, "operand_bits": 8, "group": "head", "rounding": "stochastic"},
        (
            "ranges are those of the tensor at hand unless stats='ema' asks for running ones, which save neither bytes "
            "nor the pass that finds the range; values outside a running range clamp, where Mesa's wrap around",
            "what attention does not read has one range per 128 elements, where Mesa has one per group of channels",
        ),
    ),
}


def find(name: object) -> Preset:
    """The preset called `name`, or `OptionError` with the nearest names."""
    if not isinstance(name, str) or name not in PRESETS:
        raise OptionError(f"unknown preset {name!r}: {nearest(str(name), PRESETS)}")
    return PRESETS[name]


def expand(layer: Mapping[str, object]) -> dict[str, object]:
    """Options of one layer with those of its preset, if it names one, below them."""
    rest = {key: value for key, value in layer.items() if key != NAME}
    if NAME not in layer:
        return rest
    preset = find(layer[NAME])
    if preset.made_by:
        raise OptionError(f"preset {layer[NAME]!r} is made by measuring your model: {preset.made_by}")
    return {**preset.options, **rest}
