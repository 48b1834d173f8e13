"""Options by name for benches that plan large models without running them: `4 bit`, `2 bit g128`, `default 50%`."""

import re
from dataclasses import replace

from bench.traffic import INLINED
from fxcompress.options import Options

WIDTHS = ("default", "4 bit", "2 bit")


def options_of(variant: str) -> Options:
    """What a variant's name says: `default`, `exact` or both widths, perhaps with elements per scale behind them, or
    with masks beside the codes, and a budget if a share follows."""
    widths, *share = re.split(r" (?=[\d.]+%$)", variant)
    options = Options(budget=share[0] if share else None, lossy=widths != "exact", disable_passes=INLINED)
    if widths in ("default", "exact"):
        return options
    bits, _, group = widths.partition(" bit")
    options = replace(options, bits=int(bits), operand_bits=int(bits))
    if group == " masks":
        return replace(options, disable_passes=(*INLINED, "fold_masks"))
    return replace(options, group=int(group.removeprefix(" g"))) if group else options
