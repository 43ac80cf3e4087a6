"""Random layers at the shapes of real models, as a policy is shown them after a prompt."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Generic, TypeVar

import attrs
import torch
from jaxtyping import Float, Int
from torch import Tensor

import kvpolicy

SHARPNESS = 3.0
"""Queries are this much longer than normal noise, so attention is as uneven as in real models."""


@attrs.frozen(kw_only=True)
class LayerShape:
    """The sizes of an attention layer; the defaults are those of Llama-3.1-8B."""

    heads: int = 32
    kv_heads: int = 8
    dim: int = 128
    model_dim: int = 4096
    window: int = 32

    @property
    def groups(self) -> int:
        """Query heads for each key/value head."""
        return self.heads // self.kv_heads

    @property
    def shape(self) -> dict[str, int]:
        """The sizes by their letters."""
        return {
            "H": self.heads,
            "N": self.kv_heads,
            "D": self.dim,
            "M": self.model_dim,
            "W": self.window,
        }


S = TypeVar("S", bound=LayerShape)


class Source(Generic[S]):
    """Random tensors of one layer with `length` positions; the same for the same length."""

    def __init__(self, scale: S, length: int, dtype: torch.dtype, device: torch.device) -> None:
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
        return self.normal(size, self.scale.heads * self.scale.dim) / math.sqrt(size)

    def kept(self, count: int) -> Int[Tensor, "1 N K"]:
        """Return `count` random positions of each head, ascending."""
        scores = self.uniform(1, self.scale.kv_heads, self.length)
        return scores.topk(count).indices.sort(-1).values


@lru_cache(maxsize=1)
def random_layer(
    scale: LayerShape, length: int, budget: int, dtype: torch.dtype, device: torch.device
) -> kvpolicy.Observation:
    """Return a layer whose prompt has been read; the factors of its projection are computed."""
    source = Source(scale, length, dtype, device)
    layer = kvpolicy.Observation(
        queries=source.queries(),
        keys=source.rows(),
        values=source.rows(),
        output_weight=source.output_weight(),
        budget=budget,
    )
    # A model computes its factors once, not at each eviction.
    assert layer.output_factors is not None
    return layer
