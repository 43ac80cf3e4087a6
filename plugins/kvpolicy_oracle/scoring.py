"""Scorer `oracle`: the set of positions from which future outputs differ least, found greedily."""

from __future__ import annotations

from typing import ClassVar

import attrs
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kvpolicy.evaluation.recording import Future
from kvpolicy.observation.fold import Reduce
from kvpolicy.observation.observation import Observation
from kvpolicy.observation.outputs import output_sizes
from kvpolicy.options import count
from kvpolicy.pipeline.capabilities import ModelFacts
from kvpolicy_kernels import Queries, forward_selection, set_error
from kvpolicy_oracle.foresight import Foresight, check_layers, foresight
from kvpolicy_oracle.single_scoring import SingleOracleScorer


@attrs.frozen(kw_only=True)
class OracleScorer:
    """Scores positions by the order in which they bring future outputs back.

    Starts from no position, and adds in `rounds` those that lower this error of the set K most,
    until the budget is full. W_h are the columns of the output projection, and y_f is the layer's
    output:

        1/F sum_f ||sum_h W_h (o_hfK - o_hf)|| / ||y_f||

    over the F queries of the `future` and the query heads h of the group; o_hfK is the output of a
    head that holds only K and the future tokens. The order is a score: see
    `kvpolicy_kernels.forward_selection`. A head for which the best single positions
    (`oracle_single`) make a smaller error keeps those.

    With as many `rounds` as the budget one position is added at a time. `window` queries of the
    prompt are shown; the scorer uses none.

    >>> from kvpolicy.testing import observation
    >>> class Repeats:
    ...     def future_of(self, layer):
    ...         return Future(queries=layer.queries[:, :, -1:], keys=layer.keys[:, :, -1:],
    ...                       values=layer.values[:, :, -1:])
    >>> OracleScorer(future=Repeats()).score(observation(positions=5), lambda rows: rows).shape
    torch.Size([1, 4, 5])
    """

    prefill_only: ClassVar[bool] = True

    future: Foresight = attrs.field(validator=foresight)
    rounds: int = attrs.field(default=16, validator=count)
    window: int = attrs.field(default=1, validator=count)

    def check_model(self, model: ModelFacts) -> None:
        """Raise UnsupportedModelError if layers share keys."""
        check_layers(model, "oracle")

    def score(self, observation: Observation, reduce: Reduce) -> Float[Tensor, "B H S"]:
        """Return the order of the better of two sets, for each head. `reduce` is not used."""
        length, budget = observation.length, min(observation.budget, observation.length)
        future, factors = self.future.future_of(observation), observation.group_factors
        keys = torch.cat([observation.keys, future.keys], dim=2).double()
        values = torch.cat([observation.values, future.values], dim=2).double()
        asked = _asked(observation, future, keys, values)
        counts = [each + future.keys.shape[2] for each in _rounds(budget, self.rounds)]
        given = asked, keys, values, factors
        greedy = forward_selection(*given, _held(keys, length), counts, root=True)[..., :length]
        single = SingleOracleScorer(future=self.future).score(observation, reduce)
        single = single.unflatten(1, (keys.shape[1], -1))[:, :, 0]
        errors = [
            set_error(*given, _held(keys, length, each.topk(budget, -1).indices), root=True)
            for each in (greedy, single)
        ]
        better = (errors[0] <= errors[1])[..., None]
        scores = torch.where(better, greedy, single)
        groups = observation.queries.shape[1] // keys.shape[1]
        return scores.repeat_interleave(groups, dim=1)


def _asked(
    observation: Observation,
    future: Future,
    keys: Float[Tensor, "B N S D"],
    values: Float[Tensor, "B N S Dv"],
) -> Queries:
    """Return the future queries, each weighted by 1 / (F ||y_f||)."""
    tokens = future.queries.shape[2]
    seen = observation.length + 1 + torch.arange(tokens, device=keys.device)
    rows = future.queries.double()
    asked = Queries(
        rows,
        torch.ones_like(rows[:, 0, :, 0]) / tokens,
        seen,
        scaling=observation.scaling,
        softcap=observation.softcap,
        sinks=observation.sink_logits,
    )
    return asked._replace(weights=asked.weights / output_sizes(observation, asked, keys, values))


def _rounds(budget: int, rounds: int) -> list[int]:
    """Return how many positions are held after each round."""
    steps = min(rounds, budget)
    return [budget * step // steps for step in range(1, steps + 1)]


def _held(
    keys: Float[Tensor, "B N S D"], length: int, kept: Int[Tensor, "B N K"] | None = None
) -> Bool[Tensor, "B N S"]:
    """Mark the future tokens, which stand behind the first `length` rows, and the kept rows."""
    held = torch.zeros(keys.shape[:3], dtype=torch.bool, device=keys.device)
    held[..., length:] = True
    return held if kept is None else held.scatter_(-1, kept, True)
