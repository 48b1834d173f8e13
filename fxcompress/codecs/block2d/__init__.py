"""Affine quantization with one scale per block of a map."""

from fxcompress.codecs.block2d.codec import Block2d

__all__ = ["Block2d"]
