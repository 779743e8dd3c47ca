"""Quantized block formats in numpy: the definition that every faster kernel is held against."""
