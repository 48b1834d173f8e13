"""The error family. Each message says what was found, where, and what to do about it."""

import difflib
from collections.abc import Iterable


class FxcompressError(Exception):
    """Base of every error that fxcompress raises on purpose."""


class OptionError(FxcompressError):
    """An option is unknown, has the wrong type, is out of range, or conflicts with another."""


class PlanError(FxcompressError):
    """A plan file cannot be read, or does not fit the graph it is replayed on."""


class BudgetError(FxcompressError):
    """No plan found keeps the predicted peak below the budget; the message states the lowest peak that was found.

    `peak_bytes` is the predicted peak of the plan that was tried.
    """

    def __init__(self, message: str, *, peak_bytes: int = 0) -> None:
        super().__init__(message)
        self.peak_bytes = peak_bytes


class AccuracyError(FxcompressError):
    """No plan found keeps the gradient's predicted error below the limit; the message states the lowest found.

    `rel_error` is that lowest relative error of the whole gradient.
    """

    def __init__(self, message: str, *, rel_error: float = 0.0) -> None:
        super().__init__(message)
        self.rel_error = rel_error


class GraphError(FxcompressError):
    """A rewritten graph pair breaks a rule of the partition contract (a bug here, never in the user's model)."""


class UnsupportedGraphError(FxcompressError):
    """A graph that is compiled unchanged; the message is the reason given in the one warning."""


def nearest(word: str, valid: Iterable[str]) -> str:
    """Return a hint: the closest valid names to `word`, or all of them when none is close."""
    names = sorted(valid)
    close = difflib.get_close_matches(word, names, n=3, cutoff=0.5)
    if close:
        return "did you mean " + " or ".join(repr(name) for name in close) + "?"
    return "valid names: " + ", ".join(names)
