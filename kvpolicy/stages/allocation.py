"""Allocate: how many positions each key/value head of a layer keeps."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import attrs
import torch
from jaxtyping import Float, Int
from torch import Tensor

from kvpolicy.stages.observation import Observation


@runtime_checkable
class Allocator(Protocol):
    """Says how many positions each head keeps."""

    def allocate(
        self, scores: Float[Tensor, "B N S"], observation: Observation, budget: int
    ) -> Int[Tensor, "B N"]:
        """Return counts of at most S; over all layers and heads they average at most `budget`.

        Scores of protected positions are +inf. Counts that need no scores belong on the CPU: the
        size of the smaller cache is then known without waiting for the device.
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
        return torch.full((batch, heads), min(budget, length))
