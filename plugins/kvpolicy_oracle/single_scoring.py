"""Scorer `oracle_single`: what future outputs lose if one position alone is evicted."""

from __future__ import annotations

from typing import ClassVar

import attrs
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from kvpolicy.observation.fold import Reduce
from kvpolicy.observation.observation import Observation
from kvpolicy.observation.softmax import softmax
from kvpolicy.options import count
from kvpolicy.pipeline.capabilities import ModelFacts
from kvpolicy_kernels import joint_reconstruction_error
from kvpolicy_oracle.foresight import Foresight, check_layers, foresight


@attrs.frozen(kw_only=True)
class SingleOracleScorer:
    """Scores a position by the error that its eviction alone causes in future outputs.

    score_i = 1/F sum_f ||sum_h a_hfi / (1 - a_hfi) W_h (o_hf - v_i)||

    over the F queries of the `future` and the query heads h of the group. Each query attends to all
    positions held, and to the future tokens up to its own. All query heads of a group have the same
    score. Sums are in float64. If the output projection is not known, errors are in value space.

    `window` queries of the prompt are shown; the scorer uses none.

    >>> from kvpolicy.testing import observation
    >>> from kvpolicy.evaluation.recording import Future
    >>> class Repeats:
    ...     def future_of(self, layer):
    ...         return Future(queries=layer.queries[:, :, -1:], keys=layer.keys[:, :, -1:],
    ...                       values=layer.values[:, :, -1:])
    >>> scorer = SingleOracleScorer(future=Repeats())
    >>> scorer.score(observation(positions=5), lambda rows: rows).shape
    torch.Size([1, 4, 5])
    """

    prefill_only: ClassVar[bool] = True

    future: Foresight = attrs.field(validator=foresight)
    window: int = attrs.field(default=1, validator=count)

    def check_model(self, model: ModelFacts) -> None:
        """Raise UnsupportedModelError if layers share keys."""
        check_layers(model, "oracle_single")

    def score(self, observation: Observation, reduce: Reduce) -> Float[Tensor, "B H S"]:
        """Return the mean of the errors over the future queries. `reduce` is not used."""
        future, factors = self.future.future_of(observation), observation.group_factors
        keys = torch.cat([observation.keys, future.keys], dim=2).double()
        values = torch.cat([observation.values, future.values], dim=2).double()
        errors = observation.keys.new_zeros(observation.keys.shape[:3], dtype=torch.float64)
        for step, query in enumerate(future.queries.double().unbind(2)):
            seen = observation.length + step + 1
            attention = _attention(query, keys[:, :, :seen], observation)
            lost = _errors(
                attention,
                values[:, :, :seen],
                factors,
                learned_sinks=observation.sink_logits is not None,
            )
            errors += lost[..., : observation.length]
        errors = errors / future.queries.shape[2]
        groups = observation.queries.shape[1] // errors.shape[1]
        return errors.float().repeat_interleave(groups, dim=1)


def _attention(
    query: Float64[Tensor, "B H D"], keys: Float64[Tensor, "B N S D"], observation: Observation
) -> Float64[Tensor, "B H S"]:
    """Return one query's attention in float64, because one position may have 1 - 1e-10 of it."""
    by_group = query.unflatten(1, (keys.shape[1], -1))
    logits: Tensor = (by_group @ keys.mT).flatten(1, 2) * observation.scaling
    if observation.softcap is not None:
        logits = observation.softcap * torch.tanh(logits / observation.softcap)
    return softmax(logits, observation.sink_logits)


def _errors(
    attention: Float64[Tensor, "B H S"],
    values: Float64[Tensor, "B N S Dv"],
    factors: Float[Tensor, "N R GDv"] | None,
    *,
    learned_sinks: bool,
) -> Float64[Tensor, "B N S"]:
    """Return the error of one query's output for the eviction of each position."""
    return joint_reconstruction_error(attention, values, factors, learned_sinks=learned_sinks)
