"""How a policy allocates: to one layer, to a layer and those behind it, or to all layers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kvpolicy.observation.observation import Observation
from kvpolicy.pipeline.checks import (
    at_work,
    check_total,
    checked_budgets,
    checked_layer_budgets,
)
from kvpolicy.stages.allocation import Allocator, ModelAllocator, SequentialAllocator

if TYPE_CHECKING:
    from kvpolicy.pipeline.title import Titles


class Allocating:
    """Runs the allocator of a `Pipeline`, and checks what it returns."""

    if TYPE_CHECKING:
        # Types alone see these: the pipeline has them as fields.
        @property
        def allocator(self) -> Allocator: ...  # noqa: D102
        @property
        def titles(self) -> Titles: ...  # noqa: D102

    @cached_property
    def model_allocator(self) -> ModelAllocator | None:
        """The allocator if it compares layers, else None."""
        return self.allocator if isinstance(self.allocator, ModelAllocator) else None

    @cached_property
    def sequential_allocator(self) -> SequentialAllocator | None:
        """The allocator if a layer may keep what those before it have left, else None."""
        allocator = self.allocator if self.model_allocator is None else None
        return allocator if isinstance(allocator, SequentialAllocator) else None

    def allocate(
        self,
        scores: Float[Tensor, "B N S"],
        observation: Observation,
        held: Sequence[int] | None = None,
        spare: Int[Tensor, " B"] | None = None,
    ) -> Int[Tensor, "B N"]:
        """Return how many positions each head of one layer keeps, on the CPU.

        `held` are the positions that each head holds; None if all hold S. `spare` are those that
        the layers before have left, on the CPU; None if none. Only an allocator that goes layer by
        layer sees them.
        """
        title, budget = self.titles["allocator"], observation.budget
        held = held or [scores.shape[-1]]
        if self.sequential_allocator is None:
            with at_work(title, scores, observation):
                budgets = self.allocator.allocate(scores, observation, budget)
            return checked_budgets(title, budgets, scores, held)
        if spare is None:
            spare = torch.zeros(len(scores), dtype=torch.long, device="cpu")
        with at_work(title, scores, observation, spare):
            budgets = self.sequential_allocator.allocate_next(scores, observation, budget, spare)
        found = checked_budgets(title, budgets, scores, held)
        check_total(title, found, budget, spare)
        return found

    def allocate_layers(
        self,
        scores: Sequence[Float[Tensor, "B N _"]],
        observations: Sequence[Observation],
        held: Sequence[Sequence[int]],
    ) -> list[Int[Tensor, "B N"]]:
        """Return how many positions each head of every layer keeps, on the CPU."""
        if self.model_allocator is None:
            return [self.allocate(*each) for each in zip(scores, observations, held, strict=True)]
        with at_work(self.titles["allocator"], *scores, *observations):
            budgets = self.model_allocator.allocate_layers(
                scores, observations, observations[0].budget
            )
        return checked_layer_budgets(self.titles["allocator"], budgets, scores, held)
