"""Evict a prompt in one layer: keep rows by the stages, and write them into the first blocks."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import attrs
import torch
from jaxtyping import Float, Int
from torch import Tensor

from kvpolicy.cache.eviction.one_layer import evicted
from kvpolicy.cache.memory.contents import Contents
from kvpolicy.errors import InvalidComponentError
from kvpolicy.observation.observation import Observation
from kvpolicy.pipeline.pipeline import Pipeline

_BUDGETS = 1024
"""How many budgets, rounded to blocks, are remembered with their policies."""


@lru_cache(maxsize=_BUDGETS)
def _rounded(policy: Pipeline, kept: int) -> Pipeline:
    return attrs.evolve(policy, budget=kept)


def kept_rows(policy: Pipeline, observation: Observation, kept: int) -> Contents:
    """Return what a layer keeps of a prompt: `kept` rows of each head.

    Raises what the stages raise, and InvalidComponentError for another number of rows.
    """
    found = evicted(_rounded(policy, kept), observation)
    if found.ragged is not None or found.held != kept:
        raise InvalidComponentError(
            f"{policy.titles['allocator']} gave heads up to {found.held} positions instead of "
            f"{kept}, which vLLM's blocks are freed for. Use the allocator 'uniform'."
        )
    return found


def write(
    impl: Any,
    layer: Any,
    cache: Tensor,
    rows: tuple[Float[Tensor, "1 N K D"], Float[Tensor, "1 N K Dv"]],
    blocks: Int[Tensor, " count"],
) -> None:
    """Let the backend write kept rows into the first slots of these blocks."""
    block = cache.shape[2]
    keys, values = (each[0].transpose(0, 1).contiguous() for each in rows)
    places = torch.arange(keys.shape[0], device=blocks.device)
    slots = blocks[places // block].long() * block + places % block
    impl.do_kv_cache_update(layer, keys, values, cache, slots)
