"""Scorer `dapq`: another scorer, asked with the prompt's queries at the next positions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import attrs
import torch
from jaxtyping import Float, Int
from torch import Tensor

from kvpolicy.asking import AskingScorer, askable, own_copy
from kvpolicy.observation.fold import Reduce
from kvpolicy.observation.observation import Observation
from kvpolicy.observation.replay import continued
from kvpolicy.options import count, one_of


@attrs.frozen(kw_only=True)
class PseudoQueryScorer(AskingScorer):
    """Gives the scores that another scorer gives for pseudo queries at the next positions.

    q'_i = R_(L+i) R_(t_i)^-1 q_(t_i),    i = 0 ... N - 1

    t_0 < t_1 ... are N tokens of the prompt, q_t their queries, R_p the rotary embedding of
    position p, and L the next position. Each pseudo query sees all positions.

    https://arxiv.org/abs/2603.11564, without its second forward: see the README.

    `scorer`: the other scorer, a name or a mapping of name and options. It must say `replayable`.
    `tokens`: N. If fewer queries are shown, it is their number.
    `content`: which tokens. "last" are the last N, and "spread" are evenly spread ones.

    >>> from kvpolicy.testing import observation
    >>> layer = observation(positions=9, window=4)
    >>> scorer = PseudoQueryScorer(tokens=4)
    >>> scorer.score(layer, lambda rows: rows.mean(-2)).sum(-1).round(decimals=4)
    tensor([[1., 1., 1., 1.]])
    """

    scorer: str | Mapping[str, Any] = attrs.field(
        default="snapkv",
        converter=own_copy,
        validator=askable,
        hash=False,  # A mapping has no hash.
    )
    tokens: int = attrs.field(default=32, validator=count)
    content: Literal["last", "spread"] = attrs.field(
        default="last", validator=one_of("last", "spread")
    )

    @property
    def window(self) -> int | None:
        """How many queries must be shown: N, or all if they are spread."""
        return self.tokens if self.content == "last" else None

    @property
    def prefill_only(self) -> bool:
        """Whether all queries of a prompt are needed."""
        return self.content == "spread"

    def score(self, observation: Observation, reduce: Reduce) -> Float[Tensor, "B H S"]:
        """Return the other scorer's scores. `reduce` folds the pseudo queries, in their order.

        Raises UnsupportedModelError if the model's rotary embedding is not known.
        """
        places = self._places(observation.window, observation.queries.device)
        batch = observation.queries.shape[0]
        return self.ask(continued(observation, places.expand(batch, -1)), reduce)

    def _places(self, window: int, device: torch.device) -> Int[Tensor, " M"]:
        """Return which of the queries shown are taken. The last one is always among them."""
        number = min(self.tokens, window)
        if self.content == "last":
            return torch.arange(window - number, window, device=device)
        return torch.arange(1, number + 1, device=device) * window // number - 1
