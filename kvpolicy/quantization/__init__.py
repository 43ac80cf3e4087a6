"""Rows of numbers as bytes: few bits for each number, and for each group of them how to read it."""

from kvpolicy.quantization.backends import BACKENDS, Quantize, check_backend
from kvpolicy.quantization.rows import RowFormat

__all__ = ["BACKENDS", "Quantize", "RowFormat", "check_backend"]
