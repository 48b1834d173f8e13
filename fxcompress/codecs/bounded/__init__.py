"""Error-bounded quantization at a fixed rate (COMET)."""

from fxcompress.codecs.bounded.codec import Bounded

__all__ = ["Bounded"]
