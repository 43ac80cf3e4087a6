"""Scorer `forward`: the order in which positions are added, by the exact error of the set."""

from __future__ import annotations

from typing import ClassVar

import attrs
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from kvpolicy.errors import UnsupportedModelError
from kvpolicy.observation.fold import Reduce
from kvpolicy.observation.observation import Observation
from kvpolicy.observation.replay import MOST_HOPS
from kvpolicy.options import at_most, count, natural, odd_count
from kvpolicy.pipeline.capabilities import ModelFacts
from kvpolicy_forward.queries import asked
from kvpolicy_kernels import forward_selection


@attrs.frozen(kw_only=True)
class ForwardScorer:
    """Scores positions by the order in which they bring a layer's output back.

    Starts from the last `near` positions, adds the most attended ones, and then in `rounds` those
    that lower this error of the set K most, until the budget is full:

    error(K) = sum_m w_m ||sum_h W_h (o_hmK - o_hm)||^2 / ||y_m||^2

    o_hmK is the output of query head h for query m if its key/value head keeps K alone, and y_m is
    the layer's output. The queries m are the last `last` ones, weighted by the smoother, and those
    of up to `tokens` tokens for each of `hops` replays, weighted by their shares (see
    `kvpolicy.observation.replay`; scores are attention here). Gains are averaged over `width`
    neighbours before the best are added.

    The order is a score: what was added earlier has the higher one. So it serves each budget up to
    the observation's, and allocators can compare heads.

    >>> from kvpolicy.testing import observation
    >>> layer = observation(positions=9, window=9, budget=6)
    >>> ForwardScorer().score(layer, lambda rows: rows.mean(-2)).shape
    torch.Size([1, 4, 9])
    """

    window: ClassVar[None] = None
    prefill_only: ClassVar[bool] = True
    counts_budget: ClassVar[bool] = True

    rounds: int = attrs.field(default=4, validator=count)
    width: int = attrs.field(default=3, validator=odd_count)
    last: int = attrs.field(default=32, validator=count)
    hops: int = attrs.field(default=3, validator=[natural, at_most(MOST_HOPS)])
    tokens: int = attrs.field(default=64, validator=count)
    near: int = attrs.field(default=4, validator=natural)

    @property
    def needs(self) -> tuple[str, ...]:
        """What the model must show: its rotary embedding if queries are replayed, and W_h."""
        return ("rotary", "output_weight") if self.hops else ("output_weight",)

    def check_model(self, model: ModelFacts) -> None:
        """Raise UnsupportedModelError if layers share keys: their outputs are no joint output."""
        if model.readers > 1:
            raise UnsupportedModelError(
                f"scorer 'forward' measures the joint output of a group of heads, but in "
                f"{model.name} {model.readers} layers attend with the same keys and values, and "
                "each has an output of its own. Use 'replay'."
            )

    def score(self, observation: Observation, reduce: Reduce) -> Float[Tensor, "B H S"]:
        """Return the order for each head. `reduce` weights the last queries.

        If it is no weighted sum, the last queries count alike. Raises UnsupportedModelError if
        queries are replayed and the model's rotary embedding is not known.
        """
        groups = observation.queries.shape[1] // observation.keys.shape[1]
        # Other tokens are replayed in each sequence.
        rows = (observation.row(index) for index in range(len(observation.queries)))
        orders = [self._of_row(row, reduce) for row in rows]
        return torch.cat(orders).repeat_interleave(groups, dim=1)

    def _of_row(self, row: Observation, reduce: Reduce) -> Float[Tensor, "1 N S"]:
        queries = asked(
            row, reduce, last=self.last, hops=self.hops, tokens=self.tokens, near=self.near
        )
        return forward_selection(
            queries,
            row.keys,
            row.values,
            row.group_factors,
            self._held(row),
            self._counts(min(row.budget, row.length)),
            by_mass=True,
            width=self.width,
        )

    def _held(self, row: Observation) -> Bool[Tensor, "1 N S"]:
        places = torch.arange(row.length, device=row.keys.device)
        return (places >= row.length - self.near).expand(row.keys.shape[:3])

    def _counts(self, budget: int) -> list[int]:
        """Return how many positions are held after each step, the first by attention."""
        free = max(0, budget - self.near)
        first = min(free, max(4, free // (self.rounds + 1)))
        # With more rounds than positions, each adds one or none.
        rounds = min(self.rounds, max(1, free - first))
        later = [first + (free - first) * step // rounds for step in range(rounds + 1)]
        return sorted({min(budget, self.near) + each for each in later})
