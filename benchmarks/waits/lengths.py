"""What one eviction launches at the shapes of a real model, for a short and for a long prompt."""

from __future__ import annotations

import attrs

import kvpolicy
from benchmarks.eviction_memory import BUDGET, counted_on_a_gpu, layer_without_data
from benchmarks.layers import LayerShape
from benchmarks.waits.counts import Counts
from kvpolicy.cache.eviction.one_layer import evicted

LENGTHS = (4096, 131_072)
GROWTH = 1.5
"""The launches of the longer prompt are at most this many times those of the shorter."""


@attrs.frozen(kw_only=True)
class Eviction:
    """One eviction: its launches and waits, and its extra memory as a share of the layer."""

    launches: int
    waits: int
    share: float


def eviction(recipe: str, length: int) -> Eviction:
    """Count the second eviction of a layer of Llama-3.1-8B's shape, on tensors without data.

    What is computed once for a model is computed by the first.
    """
    shape, counts = LayerShape(), Counts()
    policy = kvpolicy.recipe(recipe, budget=BUDGET)
    with counted_on_a_gpu(BUDGET, counts) as memory:
        layer = layer_without_data(policy, length, shape)
        evicted(policy, layer)
        counts.clear()
        memory.peak = before = memory.live
        evicted(policy, layer)
        extra = memory.peak - before
    held = layer.keys.nbytes + layer.values.nbytes
    return Eviction(
        launches=counts.total("launches"), waits=counts.total("waits"), share=extra / held
    )
