"""Allocate: how many positions each head of a layer keeps, the same in all processes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from kvpolicy.cache.eviction.ranked import Ranked
from kvpolicy.cache.eviction.spare import Spare
from kvpolicy.errors import InvalidComponentError
from kvpolicy.observation.shard import Shard
from kvpolicy.pipeline.pipeline import Pipeline

Budgets = Int[Tensor, "_ _"] | None
"""Positions that each head keeps, on the CPU; None keeps all."""


def budgets_of(pipeline: Pipeline, ranked: Ranked, spare: Spare) -> Budgets:
    """Let the policy share out one layer's budget among its heads, or keep to an error target.

    `spare` is told what the layer leaves, if the policy's allocator goes layer by layer.
    """
    scores = ranked.scores_of_layer
    if scores is None:
        return None
    if ranked.within is not None:
        return ranked.within
    shown = ranked.observation
    if not shown.budget:  # all of it is reserved
        return torch.full(scores.shape[:2], ranked.reserved, dtype=torch.long, device="cpu")
    if pipeline.sequential_allocator is None:
        budgets = pipeline.allocate(scores, shown, ranked.shared_out)
    else:
        left = spare.of(ranked.rows)
        budgets = pipeline.allocate(scores, shown, ranked.shared_out, left)
        spare.leave(ranked.rows, budgets, shown.budget)
    if ranked.reserved:
        budgets = budgets + ranked.reserved
    return _agreed(pipeline, budgets, ranked.shard)


def budgets_of_layers(pipeline: Pipeline, layers: Sequence[Ranked]) -> list[Budgets]:
    """Let the policy share out the budget of each of some sequences among all layers.

    The sequences hold equally many tokens, and so have the same budget.
    """
    scores = [each.scores_of_layer for each in layers]
    known = [each for each in scores if each is not None]
    if len(known) < len(layers):
        return [None] * len(layers)
    # Layers may be on different devices: they are compared on the first layer's.
    together = [each.to(known[0].device) for each in known]
    shown = [each.observation for each in layers]
    held = [each.shared_out for each in layers]
    if not shown[0].budget:
        budgets = [torch.zeros(each.shape[:2], dtype=torch.long, device="cpu") for each in known]
    else:
        budgets = pipeline.allocate_layers(together, shown, held)
    return [
        _agreed(pipeline, of_layer + layer.reserved, layer.shard)
        for of_layer, layer in zip(budgets, layers, strict=True)
    ]


def _agreed(
    pipeline: Pipeline, budgets: Int[Tensor, "b N"], shard: Shard | None
) -> Int[Tensor, "b N"]:
    """Return the budgets; refuse them if processes that share the model differ."""
    if shard is not None and not all(
        torch.equal(budgets, each) for each in shard.exchange(budgets)
    ):
        raise InvalidComponentError(
            f"{pipeline.titles['allocator']} returned different budgets in different processes. "
            "Under tensor parallelism an allocator may depend only on `scores`, which are those "
            "of all heads, and on `observation.of_all_heads(...)`."
        )
    return budgets
