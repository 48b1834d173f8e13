"""Options by name for benches that plan large models without running them: `4 bit`, `default 50%`, `exact`."""

import re
from dataclasses import replace

from bench.traffic import INLINED
from fxcompress.options import Options

WIDTHS = ("default", "4 bit", "2 bit")


def options_of(variant: str) -> Options:
    """What a variant's name says: `default`, `exact` or both widths, and a budget if a share follows."""
    widths, *share = re.split(r" (?=[\d.]+%$)", variant)
    options = Options(budget=share[0] if share else None, lossy=widths != "exact", disable_passes=INLINED)
    if widths in ("default", "exact"):
        return options
    bits = int(widths.removesuffix(" bit"))
    return replace(options, bits=bits, operand_bits=bits)
