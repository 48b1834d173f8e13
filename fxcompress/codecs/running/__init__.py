"""Affine codes per attention head, from ranges that follow the training (Mesa)."""

from fxcompress.codecs.running.codec import Running

__all__ = ["Running"]
