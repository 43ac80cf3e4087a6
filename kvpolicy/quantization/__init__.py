"""Rows of keys or values as bytes: few bits a number, and a step and least value for each group."""

from kvpolicy.quantization.backends import BACKENDS, Quantize, check_backend
from kvpolicy.quantization.rows import RowFormat

__all__ = ["BACKENDS", "Quantize", "RowFormat", "check_backend"]
