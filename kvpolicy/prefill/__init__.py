"""Sparse prefill: which keys of a prompt its queries attend to, block by block.

    cache = policy.cache(model, prefill="ashape")

A prefill pattern says how a prompt is read, a policy says what is kept of it. Every pattern goes
with every policy: scores are made of all keys, whatever the pattern leaves out.
"""

from kvpolicy.prefill.a_shape import AShape
from kvpolicy.prefill.pattern import PrefillPattern
from kvpolicy.prefill.vertical_slash import VerticalSlash

__all__ = ["AShape", "PrefillPattern", "VerticalSlash"]
