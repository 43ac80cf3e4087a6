"""Sparse prefill: which keys of a prompt its queries attend to, block by block.

    cache = policy.cache(model, prefill="ashape")

A prefill pattern decides how a prompt is read. A policy decides what is kept of it. Every pattern
goes with every policy, because scores are computed from all keys.
"""

from kvpolicy.prefill.a_shape import AShape
from kvpolicy.prefill.pattern import PrefillPattern
from kvpolicy.prefill.vertical_slash import VerticalSlash

__all__ = ["AShape", "PrefillPattern", "VerticalSlash"]
