"""fxcompress: a torch.compile backend that plans how every tensor saved for backward is represented.

Importing this package loads nothing but names; torch is imported when a name that needs it is first used.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fxcompress import bounds, ledger, pipeline, ranges, sensitivity
    from fxcompress.backend import actcomp, enabled, install, reports, uninstall
    from fxcompress.errors import (
        AccuracyError,
        BudgetError,
        FxcompressError,
        GraphError,
        OptionError,
        PlanError,
        UnsupportedGraphError,
    )
    from fxcompress.options import Options
    from fxcompress.plan import Decision, GraphPlan, Plan
    from fxcompress.ranks import compare_ranks
    from fxcompress.trace import explain

    __version__: str

_HOMES = {
    "actcomp": "fxcompress.backend",
    "enabled": "fxcompress.backend",
    "install": "fxcompress.backend",
    "reports": "fxcompress.backend",
    "uninstall": "fxcompress.backend",
    "compare_ranks": "fxcompress.ranks",
    "explain": "fxcompress.trace",
    "Options": "fxcompress.options",
    "Decision": "fxcompress.plan",
    "GraphPlan": "fxcompress.plan",
    "Plan": "fxcompress.plan",
    "FxcompressError": "fxcompress.errors",
    "AccuracyError": "fxcompress.errors",
    "BudgetError": "fxcompress.errors",
    "GraphError": "fxcompress.errors",
    "OptionError": "fxcompress.errors",
    "PlanError": "fxcompress.errors",
    "UnsupportedGraphError": "fxcompress.errors",
}

_MODULES = frozenset(["bounds", "ledger", "pipeline", "ranges", "sensitivity"])
"""Modules that users call functions of."""

__all__ = [
    "AccuracyError",
    "BudgetError",
    "Decision",
    "FxcompressError",
    "GraphError",
    "GraphPlan",
    "OptionError",
    "Options",
    "Plan",
    "PlanError",
    "UnsupportedGraphError",
    "__version__",
    "actcomp",
    "bounds",
    "compare_ranks",
    "enabled",
    "explain",
    "install",
    "ledger",
    "pipeline",
    "ranges",
    "reports",
    "sensitivity",
    "uninstall",
]


def __getattr__(name: str) -> object:
    if name == "__version__":
        return _version()
    if name in _MODULES:
        return importlib.import_module(f"fxcompress.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'fxcompress' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("fxcompress")
    except PackageNotFoundError:
        return "0.1.0"
