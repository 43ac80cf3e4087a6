"""Random layers on the device: keys, values, window and output projection at real shapes."""

from __future__ import annotations

from functools import lru_cache

import torch
from jaxtyping import Float, Int
from torch import Tensor

import kvpolicy
from benchmarks.gpu.scale import Scale

SHARPNESS = 3.0
"""Times a normal query: attention is then far from uniform, as in real models."""


class Source:
    """Random tensors of one layer, the same for the same length."""

    def __init__(self, scale: Scale, length: int, dtype: torch.dtype, device: torch.device) -> None:
        """Draw nothing yet."""
        self.scale, self.length, self.dtype, self.device = scale, length, dtype, device
        self._draw = torch.Generator(device).manual_seed(length)

    def normal(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """Return standard normal numbers."""
        return torch.randn(
            shape, generator=self._draw, dtype=dtype or self.dtype, device=self.device
        )

    def uniform(self, *shape: int) -> Float[Tensor, "*shape"]:
        """Return float32 numbers in [0, 1)."""
        return torch.rand(shape, generator=self._draw, device=self.device)

    def queries(self, count: int | None = None) -> Float[Tensor, "1 H W D"]:
        """Return the queries of a window."""
        size = self.scale.window if count is None else count
        return self.normal(1, self.scale.heads, size, self.scale.dim) * SHARPNESS

    def rows(self, length: int | None = None) -> Float[Tensor, "1 N L D"]:
        """Return keys or values."""
        size = self.length if length is None else length
        return self.normal(1, self.scale.kv_heads, size, self.scale.dim)

    def output_weight(self) -> Float[Tensor, "M HD"]:
        """Return the weight of an output projection."""
        size = self.scale.model_dim
        return self.normal(size, self.scale.heads * self.scale.dim) / size**0.5

    def kept(self, count: int) -> Int[Tensor, "1 N K"]:
        """Return `count` random positions of every head, ascending."""
        scores = self.uniform(1, self.scale.kv_heads, self.length)
        return scores.topk(count).indices.sort(-1).values


@lru_cache(maxsize=1)
def observation(
    scale: Scale, length: int, dtype: torch.dtype, device: torch.device
) -> kvpolicy.Observation:
    """Return what a layer shows when a prompt has been read, its factors already known."""
    source = Source(scale, length, dtype, device)
    layer = kvpolicy.Observation(
        queries=source.queries(),
        keys=source.rows(),
        values=source.rows(),
        output_weight=source.output_weight(),
        budget=scale.budget,
    )
    assert layer.output_factors is not None
    return layer
