"""Whether a stated `group` has rows that are normalized share a scale, which `row_groups` avoids where none is stated.

A stated size is taken as it is. Read-only.
"""

from collections.abc import Sequence

from fxcompress.options import Options
from fxcompress.passes.choose import Encoding
from fxcompress.passes.find_rules import rule_for
from fxcompress.passes.find_saved import layer_of
from fxcompress.passes.row_groups import row_width


def find_shared_rows(encodings: Sequence[Encoding], options: Options) -> str:
    """What to tell a user whose `group` does not end where normalized rows do; empty if it does, or none is stated."""
    sharing = [(e, width) for e in encodings if _is_stated(e, options) and (width := _shared_width(e))]
    if not sharing:
        return ""
    first, width = sharing[0]
    layer = f" of {layer_of(first.source)}" if layer_of(first.source) else ""
    return (
        f"group={first.codec.period}: {len(sharing)} of {len(encodings)} encoded tensors (first {first.source.name!r}"
        f"{layer}) are read in rows of {width} elements by a normalization, and its groups do not end where rows do: "
        "a small row takes on the error of a larger one. State a divisor of the row, or leave 'group' out"
    )


def _is_stated(encoding: Encoding, options: Options) -> bool:
    return rule_for(encoding.storage.root, options).options.group == encoding.codec.period != 0


def _shared_width(encoding: Encoding) -> int:
    """Elements of the normalized rows of which some share a group; 0 if none do."""
    width = row_width(encoding.source, encoding.order)
    return width if width % encoding.codec.period and encoding.order.cols != width else 0
