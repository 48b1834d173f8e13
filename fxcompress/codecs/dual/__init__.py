"""Block means and a quantized residual (DIVISION)."""

from fxcompress.codecs.dual.codec import Dual

__all__ = ["Dual"]
