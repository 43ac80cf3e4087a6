"""How many positions each head of a layer keeps: all processes that share a model say the same."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from kvpolicy.cache.eviction.evict import Ranked
from kvpolicy.errors import InvalidComponentError
from kvpolicy.observation.shard import Shard
from kvpolicy.pipeline.checks import title
from kvpolicy.policy import Policy


def budgets_of(policy: Policy, ranked: Ranked) -> Int[Tensor, "b N"] | None:
    """Let the policy share out one layer's budget among its heads; None if it keeps all."""
    scores = ranked.scores_of_layer
    if scores is None:
        return None
    return _agreed(policy, policy.allocate(scores, ranked.observation), ranked.shard)


def budgets_of_layers(policy: Policy, layers: Sequence[Ranked]) -> list[Int[Tensor, "b N"] | None]:
    """Let the policy share out the budget of one sequence among all layers, once all are ranked."""
    scores = [each.scores_of_layer for each in layers]
    known = [each for each in scores if each is not None]
    if len(known) < len(layers):
        return [None] * len(layers)
    # Layers may be on different devices: the first one's is where they are compared.
    together = [each.to(known[0].device) for each in known]
    found = policy.allocate_layers(together, [each.observation for each in layers])
    budgets = [each.to(own.device) for each, own in zip(found, known, strict=True)]
    return [_agreed(policy, *each) for each in zip(budgets, [e.shard for e in layers], strict=True)]


def _agreed(policy: Policy, budgets: Int[Tensor, "b N"], shard: Shard | None) -> Int[Tensor, "b N"]:
    """Refuse budgets that differ from process to process: what is held would not fit together."""
    if shard is not None and not all(
        torch.equal(budgets, each) for each in shard.exchange(budgets)
    ):
        raise InvalidComponentError(
            f"{title(policy, 'allocator')} gave the same heads other budgets in other processes: "
            "where several share a model, it may go by the scores, which are those of all heads, "
            "and by observation.of_all_heads."
        )
    return budgets
