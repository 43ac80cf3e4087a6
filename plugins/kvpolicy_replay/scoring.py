"""Scorer `replay`: another scorer, asked again with queries of the prompt that come next."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import attrs
import torch
from jaxtyping import Float
from torch import Tensor

from kvpolicy.asking import AskingScorer, askable, own_copy
from kvpolicy.observation.fold import Fold, Reduce, weighted
from kvpolicy.observation.observation import Observation
from kvpolicy.observation.replay import MOST_HOPS, most_attended, replayed
from kvpolicy.options import at_most, count, natural


@attrs.frozen(kw_only=True)
class ReplayScorer(AskingScorer):
    """Adds up the scores that another scorer gives for the last queries, and for replayed ones.

    s = u_0 + u_1 + ... + u_hops

    u_0 are the scores of the last queries, where they stand. For u_(k+1) the scorer is shown the
    queries of the tokens t that have the largest u_k, turned to the next position, and folds them
    by their shares:

    p_k(t) = (mean_h u_k(h, t))^2 / sum_t' (mean_h u_k(h, t'))^2

    A replayed query sees all positions. The first token and the last `near` are not replayed.

    `scorer`: the other scorer, a name or a mapping of name and options. It must say `replayable`.
    `hops`: how many times queries are replayed.
    `tokens`: how many tokens are replayed each time, at most.

    >>> from kvpolicy.testing import observation
    >>> layer = observation(positions=9, window=9)
    >>> scorer = ReplayScorer(scorer={"name": "snapkv", "window": 2}, hops=3)
    >>> scorer.score(layer, lambda rows: rows.mean(-2)).sum(-1)
    tensor([[4.0000, 4.0000, 4.0000, 4.0000]])
    """

    window: ClassVar[None] = None
    prefill_only: ClassVar[bool] = True

    scorer: str | Mapping[str, Any] = attrs.field(
        default="restkv",
        converter=own_copy,
        validator=askable,
        hash=False,  # A mapping has no hash.
    )
    hops: int = attrs.field(default=3, validator=[natural, at_most(MOST_HOPS)])
    tokens: int = attrs.field(default=64, validator=count)
    near: int = attrs.field(default=4, validator=natural)

    def score(self, observation: Observation, reduce: Reduce) -> Float[Tensor, "B H S"]:
        """Return the sum of the scores. `reduce` folds the last queries.

        Raises UnsupportedModelError if the model's rotary embedding is not known.
        """
        # Each sequence has its own shares. Scorers of others may expect one weight for each query.
        if self.asked_title.is_proved:
            return self._scored(observation, reduce)
        rows = (observation.row(index) for index in range(len(observation.queries)))
        return torch.cat([self._scored(row, reduce) for row in rows])

    def _scored(self, shown: Observation, reduce: Reduce) -> Float[Tensor, "B H S"]:
        window = min(self.asked.window or shown.window, shown.window)
        last = attrs.evolve(shown, queries=shown.queries[:, :, shown.window - window :])
        scores = total = self.ask(last, reduce)
        for _ in range(self.hops):
            chosen = most_attended(shown, scores, tokens=self.tokens, near=self.near)
            if chosen is None:
                break
            del scores  # A long prompt's are large.
            scores = self.ask(replayed(shown, chosen.places), _weighted_by(chosen.shares))
            total = total + scores
        return total


def _weighted_by(shares: Float[Tensor, "B M"]) -> Fold:
    """Return the fold that adds up the queries of each sequence by their shares."""
    weights = shares[0] if len(shares) == 1 else shares
    return Fold(lambda values: weighted(weights.to(values), values), lambda window: weights)
