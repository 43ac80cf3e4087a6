"""Dense caches that are full from the start, for decode steps to read."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer

from benchmarks.gpu.scale import Scale


class FixedLayer(DynamicLayer):
    """Random tokens, and room for one more, which every step writes anew.

    Its shapes never change, so a step can be replayed as a CUDA graph. It needs no mask, so
    attention runs as with a growing cache. transformers' StaticCache would be masked up to its
    capacity, which rules out the fastest kernels.
    """

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        """Take over buffers with `held` + 1 rows."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.keys: Tensor = keys
        self.values: Tensor = values
        self.dtype, self.device = keys.dtype, keys.device
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write the new token into the last row."""
        self.keys[:, :, -1:] = key_states
        self.values[:, :, -1:] = value_states
        return self.keys, self.values

    def get_seq_length(self) -> int:
        """Return the number of tokens before the one that is written."""
        return self.keys.shape[-2] - 1


def fixed_cache(scale: Scale, held: int, batch: int, layers: int, device: torch.device) -> Cache:
    """Return a cache with random tokens for steps that are replayed."""
    shape = (batch, scale.kv_heads, held + 1, scale.dim)

    def rows() -> Tensor:
        return torch.empty(shape, dtype=scale.dtype, device=device).normal_()

    return Cache(layers=[FixedLayer(rows(), rows()) for _ in range(layers)])


def growing_cache(fixed: Cache, config: PreTrainedConfig) -> DynamicCache:
    """Return transformers' own cache with the same tokens; its first step copies them."""
    cache = DynamicCache(config=config)
    layers: Any = zip(cache.layers, fixed.layers, strict=True)
    for layer, full in layers:
        held = full.get_seq_length()
        layer.dtype, layer.device, layer.is_initialized = full.dtype, full.device, True
        layer.keys, layer.values = full.keys[:, :, :held], full.values[:, :, :held]
    return cache
