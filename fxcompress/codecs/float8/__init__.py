"""Scaled 8-bit floating point."""

from fxcompress.codecs.float8.codec import Float8

__all__ = ["Float8"]
