"""An observation made of noise, for examples and tests."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kvpolicy.observation.observation import Observation
from kvpolicy.observation.rotary import PlainRotary


def observation(
    *,
    batch: int = 1,
    heads: int = 2,
    groups: int = 2,
    positions: int = 32,
    window: int = 8,
    dim: int = 8,
    model_dim: int = 16,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    **fields: Any,
) -> Observation:
    """Return a layer with `heads` key/value heads, and `groups` query heads for each of them.

    The same arguments give the same tensors. `fields` replaces fields of Observation.

    >>> layer = observation(positions=5, window=2)
    >>> layer.queries.shape, layer.keys.shape
    (torch.Size([1, 4, 2, 8]), torch.Size([1, 2, 5, 8]))
    """
    made: dict[str, Any] = {
        "queries": normal(seed, batch, heads * groups, min(window, positions), dim).to(dtype),
        "keys": normal(seed + 1, batch, heads, positions, dim).to(dtype),
        "values": normal(seed + 2, batch, heads, positions, dim).to(dtype),
        "output_weight": normal(seed + 3, model_dim, heads * groups * dim).to(dtype),
        "rotary": PlainRotary(dim=dim),
    }
    return Observation(**made | fields)


def normal(seed: int, *shape: int) -> Tensor:
    """Return standard normal noise; the same arguments give the same numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
