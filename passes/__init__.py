"""The graph passes, one idea per file."""

if __name__ != "fxcompress.passes":
    raise ImportError(f"import fxcompress.passes, not {__name__!r}: a second copy of every class would exist")
