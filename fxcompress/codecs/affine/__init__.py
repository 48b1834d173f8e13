"""Affine group quantization."""

from fxcompress.codecs.affine.codec import Affine

__all__ = ["Affine"]
