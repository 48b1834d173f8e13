"""Small texts that every report shares: bytes with units, ratios, a decision's representation, layer patterns."""

import re

from fxcompress.plan import FUSED, TRITON, Accuracy, Decision, LossDecision, Param

ROUNDING = {"stochastic": "SR", "nearest": "RN"}
UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


def human_bytes(nbytes: int) -> str:
    """Return a byte count with a binary unit and about three digits: `512 B`, `1.50 KiB`, `12.3 MiB`."""
    size, unit = float(nbytes), 0
    while abs(size) >= 1024 and unit < len(UNITS) - 1:
        size, unit = size / 1024, unit + 1
    if unit == 0:
        return f"{nbytes} B"
    digits = 2 if abs(size) < 10 else 1 if abs(size) < 100 else 0
    return f"{size:.{digits}f} {UNITS[unit]}"


def signed_bytes(nbytes: int) -> str:
    """Return a difference of byte counts with its sign."""
    return ("+" if nbytes > 0 else "") + human_bytes(nbytes)


def ratio(before: int, after: int) -> str:
    """Return how many times smaller `after` is, as `5.9x`."""
    if before == after:
        return "1.0x"
    return f"{before / after:.1f}x" if after else "all"


def representation(decision: Decision) -> str:
    """Return codec and parameters in short, as `affine 4b g128 SR`, `valueset 1b` or `keep`; `triton` if a kernel of
    ours encodes it."""
    params = dict(decision.params)
    count = params.get("count")
    lowering = decision.lowering if decision.lowering in (FUSED, TRITON) else ""
    if decision.codec == "valueset" and isinstance(count, int):
        return " ".join(filter(None, [f"valueset {max(count - 1, 0).bit_length()}b", lowering]))
    shown = (_parameter(name, value) for name, value in params.items())
    return " ".join(filter(None, [decision.codec, *shown, lowering]))


def layer_pattern(layer: str) -> str:
    """Return a module path with its positions in containers replaced: `h.11.mlp` becomes `h.*.mlp`."""
    return re.sub(r"(?<![^.])[0-9]+(?![^.])", "*", layer)


def short_op(op: str) -> str:
    """Return an operator without namespace and default overload: `aten.addmm.default` becomes `addmm`."""
    return op.removeprefix("aten.").removeprefix("prims.").removesuffix(".default")


def printable(text: str) -> str:
    """Return text without control characters: plan files come from anywhere, and terminals obey what is in them."""
    return "".join(char if char.isprintable() else "?" for char in text)


def _parameter(name: str, value: Param) -> str:
    """Return one parameter in short; empty for a switch that is off and a number or text that is left out."""
    if name == "bits":
        return f"{value}b"
    if name == "group":
        return f"g{value}" if value else ""
    if name == "rounding":
        return ROUNDING.get(str(value), str(value))
    if isinstance(value, bool):
        return name if value else ""
    return f"{name}={value}" if value else ""


def logits(loss: LossDecision) -> str:
    """What is done about logits, for a graph that has some."""
    size = f"{'x'.join(map(str, loss.shape))} {loss.dtype}, {human_bytes(loss.nbytes)}"
    if not loss.chunks:
        return f"{size}: whole, {loss.reason}"
    extra = f"modelled: {1e3 * loss.extra_s:.3g} ms longer than whole" + (f"; {loss.reason}" if loss.reason else "")
    return f"{size}: {loss.chunks} chunks of tokens, {human_bytes(loss.chunk_nbytes)} at a time; {extra}"


def accuracy_text(accuracy: Accuracy) -> str:
    """A line about the gradient's error."""
    text = f"predicted {accuracy.predicted:.3g} of the gradient's norm, limit {accuracy.limit:g}"
    if not accuracy.cost:
        return text
    return f"{text}; no choice within it is cheaper by more than {1 - accuracy.bound / accuracy.cost:.1%}"
