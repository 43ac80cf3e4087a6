"""Sparse prefill: which keys of a prompt its queries attend to, block by block.

    cache = policy.cache(model, prefill="a-shape")

A pattern is about how a prompt is read, a policy about what is kept of it: either goes with any of
the other, and scores are made of all keys whatever the pattern left out.
"""

from kvpolicy.prefill.a_shape import AShape
from kvpolicy.prefill.naming import PATTERNS, Prefill, pattern_of
from kvpolicy.prefill.pattern import PrefillPattern
from kvpolicy.prefill.vertical_slash import VerticalSlash

__all__ = ["PATTERNS", "AShape", "Prefill", "PrefillPattern", "VerticalSlash", "pattern_of"]
