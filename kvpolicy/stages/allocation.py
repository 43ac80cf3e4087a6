"""Allocate: how many positions each key/value head of a layer keeps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Protocol, runtime_checkable

import attrs
import torch
from jaxtyping import Float, Int
from torch import Tensor

from kvpolicy.observation.observation import Observation


@runtime_checkable
class Allocator(Protocol):
    """Gives each key/value head of a layer its number of positions."""

    def allocate(
        self, scores: Float[Tensor, "B N S"], observation: Observation, budget: int
    ) -> Int[Tensor, "B N"]:
        """Return how many positions each key/value head keeps, an integer from 0 to S.

        Over all layers and heads the counts average at most `budget`.

        - A score of +inf marks a protected position.
        - A score of -inf marks a position that the head does not hold. This happens if heads hold
          different numbers of positions. S is then the length of the longest head, and
          `observation` shows that head.
        - A count above what a head holds is cut to what it holds.
        - Counts that do not depend on scores belong on the CPU. The size of the smaller cache is
          then known without waiting for the device.
        """
        ...


@runtime_checkable
class ModelAllocator(Allocator, Protocol):
    """An allocator that compares layers. It is called once, when the last layer has been scored.

    Until then every layer keeps everything, so a prompt has the peak memory of a full cache.
    `allocate` serves a single layer.
    """

    def allocate_layers(
        self,
        scores: Sequence[Float[Tensor, "B N _"]],
        observations: Sequence[Observation],
        budget: int,
    ) -> Sequence[Int[Tensor, "B N"]]:
        """Return counts for every layer. Layers may hold different numbers of positions.

        Over all layers and heads of a sequence the counts average at most `budget`.
        """
        ...


@attrs.frozen(kw_only=True)
class UniformAllocator:
    """Gives every layer and head the same budget."""

    capturable: ClassVar[bool] = True
    position_bias: ClassVar[bool] = True

    def allocate(
        self, scores: Float[Tensor, "B N S"], observation: Observation, budget: int
    ) -> Int[Tensor, "B N"]:
        """Return `budget` for every head, or S if S is smaller."""
        batch, heads, length = scores.shape
        return torch.full((batch, heads), min(budget, length), dtype=torch.long, device="cpu")
