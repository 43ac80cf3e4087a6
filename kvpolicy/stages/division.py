"""Divide: which part of a budget each span of a text gets, before the best positions are kept.

Scores decide within a span. So a span that the last queries do not ask for keeps its part, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import attrs
import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

OUTSIDE = ""
"""The name of the text outside of all spans, which is a span of its own."""

LEAST = 1e-9
"""The part, of the largest one, that a span of part 0 gets: what no other span can hold."""


@runtime_checkable
class Divider(Protocol):
    """Says in which proportion the spans of a text share a budget."""

    def divide(self, lengths: Mapping[str, int]) -> Mapping[str, float]:
        """Return the part of each span, by its name, up to a factor: finite, and at least 0.

        `lengths` counts the tokens of each span that compete: those that are protected do not. The
        text outside of all spans has the name "". Parts follow from names and lengths alone, so
        that all layers, and all processes, divide alike.
        """
        ...


@attrs.frozen(kw_only=True)
class FairDivider:
    """Gives each span a part in proportion to its length: of all spans the same share is kept.

    After "fair eviction", ACL 2026, https://arxiv.org/abs/2510.00231.

    >>> FairDivider().divide({"": 300, "rules": 100})
    {'': 300, 'rules': 100}
    """

    def divide(self, lengths: Mapping[str, int]) -> Mapping[str, float]:
        """Return the lengths."""
        return dict(lengths)


def quotas(
    free: Int[Tensor, "B N"], parts: Float64[Tensor, " G"], held: Int[Tensor, "B N G"]
) -> Int[Tensor, "B N G"]:
    """Divide `free` positions of each head among G spans, of which it holds `held`.

    A span gets its share by largest remainder: the share is rounded up or down. What a span cannot
    hold goes to the others, in the same proportion.

    >>> held = torch.tensor([[[9, 2, 9]]])
    >>> quotas(torch.tensor([[10]]), torch.tensor([1.0, 1.0, 2.0]).double(), held)
    tensor([[[3, 2, 5]]])
    """
    parts = _positive(parts)
    full = _full(free, parts, held)
    left = free - held.where(full, 0).sum(-1)
    share = parts.where(~full, 0.0)
    share = left[..., None] * share / share.sum(-1, keepdim=True).clamp_min(torch.finfo().tiny)
    rounded = share.floor().long().minimum(held - 1).clamp_min(0)
    missing = left - rounded.where(~full, 0).sum(-1)
    remainder = (share - rounded).masked_fill(full, -1.0)
    place = remainder.sort(dim=-1, descending=True, stable=True).indices.argsort(-1)
    return held.where(full, rounded + (place < missing[..., None]))


def _positive(parts: Float64[Tensor, " G"]) -> Float64[Tensor, " G"]:
    largest = parts.max()
    return torch.where(largest > 0, parts.maximum(LEAST * largest), 1.0)


def _full(
    free: Int[Tensor, "B N"], parts: Float64[Tensor, " G"], held: Int[Tensor, "B N G"]
) -> Bool[Tensor, "B N G"]:
    """Return which spans hold no more than their share, once those that are full sooner are."""
    own, other = held[..., :, None], held[..., None, :]
    sooner = other * parts[:, None] < own * parts
    taken = other.where(sooner, 0).sum(-1)
    return held * parts.where(~sooner, 0.0).sum(-1) <= (free[..., None] - taken) * parts


def divided(
    scores: Float[Tensor, "B N S"],
    spans: Int[Tensor, "B N S"],
    budgets: Int[Tensor, "B N"],
    parts: Float64[Tensor, " G"],
) -> Float[Tensor, "B N S"]:
    """Return the scores with -inf for what no span can keep; as many others as the budgets say.

    `spans` has the span of each position. Positions of score +inf are kept before the rest is
    divided; positions of score -inf are none. Of equal scores the earlier one is kept.
    """
    forced, held = scores.isposinf(), scores.isfinite()
    none = scores.new_zeros((*scores.shape[:2], len(parts)), dtype=torch.long)
    competing, kept, whole = (
        none.scatter_add(-1, spans, each.long()) for each in (held, forced, torch.ones_like(held))
    )
    free = (budgets.to(scores.device, non_blocking=True) - kept.sum(-1)).clamp_min(0)
    kept = kept + quotas(free, parts, competing)
    best_first = scores.sort(dim=-1, descending=True, stable=True).indices
    of_best = spans.gather(-1, best_first)
    together = of_best.sort(dim=-1, stable=True).indices
    order, of_order = best_first.gather(-1, together), of_best.gather(-1, together)
    before = (whole.cumsum(-1) - whole).gather(-1, of_order)
    place = torch.arange(scores.shape[-1], device=scores.device) - before
    stays = torch.zeros_like(held).scatter(-1, order, place < kept.gather(-1, of_order))
    return scores.masked_fill(~stays, -torch.inf)
