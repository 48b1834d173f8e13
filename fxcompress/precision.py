"""Precision rules: which saved tensors are stored how, by layer, operator, dtype and size. Torch-free.

A rule is a table of keys, which say what it is about, and of settings, which say what holds there. Of several rules
the first that matches wins; what a rule does not set, the options do.

    [[rule]]
    layer = "*.attn*"
    op = "bmm"
    keep = true
"""

from dataclasses import dataclass, fields
from fnmatch import fnmatchcase

KEYS = ("layer", "op", "dtype", "min_elements", "max_elements")


@dataclass(frozen=True, slots=True, kw_only=True)
class PrecisionRule:
    """One rule. None stands for "any" in a key and for "as the options say" in a setting."""

    layer: str | None = None
    """Pattern of the module path, as `h.*.mlp`: `*` stands for anything, dots included."""
    op: str | None = None
    """Pattern of the operator's name, as `gelu` or `*norm*`."""
    dtype: str | None = None
    """Pattern of the dtype, as `bfloat16` or `float*`."""
    min_elements: int | None = None
    max_elements: int | None = None
    keep: bool | None = None
    """True: stored as it is."""
    lossy: bool | None = None
    """False: exact codecs only."""
    bits: int | None = None
    """Width of lossy codes, whatever reads the tensor: for `bits` and `operand_bits` alike."""
    codec: str | None = None
    group: int | str | None = None
    rounding: str | None = None

    def matches(self, layer: str, op: str, dtype: str, elements: int) -> bool:
        """Whether the rule is about a tensor of these properties."""
        texts = ((self.layer, layer), (self.op, op), (self.dtype, dtype))
        if not all(pattern is None or fnmatchcase(text, pattern) for pattern, text in texts):
            return False
        low, high = self.min_elements, self.max_elements
        return (low is None or elements >= low) and (high is None or elements <= high)

    def to_dict(self) -> dict[str, int | str | bool]:
        """What is set, by name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    def settings(self) -> dict[str, int | str | bool]:
        """What is set besides the keys."""
        return {name: value for name, value in self.to_dict().items() if name not in KEYS}

    def __str__(self) -> str:
        return " ".join(f"{name}={value}" for name, value in self.to_dict().items())


NAMES = tuple(field.name for field in fields(PrecisionRule))
