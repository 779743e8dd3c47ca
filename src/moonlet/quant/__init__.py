"""Quantized block formats in numpy: the definition that every faster kernel is held against."""

from moonlet.quant.codec import decode, encode

__all__ = ["decode", "encode"]
