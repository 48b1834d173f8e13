"""What several codecs ask of their configuration and of a tensor's dtype."""

from collections.abc import Sequence

import torch

from fxcompress.errors import OptionError

_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def check_choice(codec: str, name: str, value: object, choices: Sequence[object]) -> None:
    """Raise `OptionError` where a parameter is none of `choices`."""
    if value not in choices:
        raise OptionError(f"{codec}: {name} is {value!r}; choose one of {choices}")


def refuse_but_floats(codec: str, dtype: torch.dtype) -> str:
    """Why a codec of floating-point numbers cannot store `dtype`, or empty."""
    return "" if dtype in _FLOATS else f"{codec} stores floating point only, not {dtype}"
