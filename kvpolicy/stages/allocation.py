"""Allocate: how many positions each key/value head of a layer keeps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import attrs
import torch
from jaxtyping import Float, Int
from torch import Tensor

from kvpolicy.observation.observation import Observation


@runtime_checkable
class Allocator(Protocol):
    """Says how many positions each head keeps."""

    def allocate(
        self, scores: Float[Tensor, "B N S"], observation: Observation, budget: int
    ) -> Int[Tensor, "B N"]:
        """Return counts of at most S; over all layers and heads they average at most `budget`.

        Scores of protected positions are +inf. Where heads hold different numbers of positions,
        scores of what a head does not hold are -inf, S is the most that one holds, the observation
        is that head's, and a count of more than a head holds means all it has. Counts that need no
        scores belong on the CPU: the size of the smaller cache is then known without waiting for
        the device.
        """
        ...


@runtime_checkable
class ModelAllocator(Allocator, Protocol):
    """An allocator that compares layers: it is asked once, when the last layer has been scored.

    Until then every layer keeps all it holds, so that the peak memory of a prompt is that of a
    full cache. `allocate` is for a layer that stands alone.
    """

    def allocate_layers(
        self,
        scores: Sequence[Float[Tensor, "B N _"]],
        observations: Sequence[Observation],
        budget: int,
    ) -> Sequence[Int[Tensor, "B N"]]:
        """Return counts for every layer, which may hold different numbers of positions.

        Over all layers and heads of a sequence they average at most `budget`.
        """
        ...


@attrs.frozen(kw_only=True)
class UniformAllocator:
    """Gives every layer and head the same budget."""

    def allocate(
        self, scores: Float[Tensor, "B N S"], observation: Observation, budget: int
    ) -> Int[Tensor, "B N"]:
        """Return `budget`, or all positions if there are fewer."""
        batch, heads, length = scores.shape
        return torch.full((batch, heads), min(budget, length), dtype=torch.long, device="cpu")
