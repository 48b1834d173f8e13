"""Exact storage of a known finite set of values."""

from fxcompress.codecs.valueset.codec import Valueset

__all__ = ["Valueset"]
