"""Score by the change of outputs if a position's key, value or both become zero."""

from __future__ import annotations

from typing import ClassVar, Literal

import attrs
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from kvpolicy.observation.alone import query_alone
from kvpolicy.observation.fold import Reduce, Weights, weights_of
from kvpolicy.observation.observation import Observation
from kvpolicy.options import count, one_of
from kvpolicy_kernels import output_change


@attrs.frozen(kw_only=True)
class OutputChangeScorer:
    """Scores a position by how much the outputs of the window's queries change without it.

    value   score_i = sum_t w_t a_ti^2 ||v_i||^2
    key     score_i = sum_t w_t a_ti^2 l_ti^2 ||v_i - o_t||^2
    joint   score_i = value + key + sum_t w_t 2 a_ti^2 l_ti (||v_i||^2 - o_t . v_i)

    l_t are the logits of query t, a_t their softmax and o_t = sum_i a_ti v_i. Each is the square of
    a change of the first order in what becomes zero, `prune`. The smoother's weights w_t average
    over the queries.

    Gu et al., https://arxiv.org/abs/2510.07651.

    >>> from kvpolicy import Observation
    >>> layer = Observation(queries=torch.ones(1, 1, 1, 1), keys=torch.ones(1, 1, 2, 1),
    ...                     values=torch.tensor([[[[0.0], [4.0]]]]))
    >>> OutputChangeScorer(window=1).score(layer, lambda changes: changes.mean(-2))
    tensor([[[1., 9.]]])
    """

    replayable: ClassVar[bool] = True

    window: int = attrs.field(default=32, validator=count)
    prune: Literal["joint", "key", "value"] = attrs.field(
        default="joint", validator=one_of("joint", "key", "value")
    )

    def score(self, observation: Observation, reduce: Reduce) -> Float[Tensor, "B H S"]:
        """Score every position, also those of the window. `reduce` averages the changes."""
        weights = weights_of(reduce, observation.window, observation.queries.device)
        if weights is None:
            return reduce(self._changes_of_queries(observation))
        return self._sum_of_changes(observation, weights)

    def _sum_of_changes(self, observation: Observation, weights: Weights) -> Float[Tensor, "B H S"]:
        return output_change(
            observation.queries,
            observation.keys,
            observation.values,
            weights,
            self.prune,
            scaling=observation.scaling,
            softcap=observation.softcap,
            sinks=observation.sink_logits,
            causal=not observation.ahead,
        )

    def _changes_of_queries(self, observation: Observation) -> Float[Tensor, "B H W S"]:
        """Return the change of each query, for a `reduce` that is no weighted sum."""
        one = torch.ones(1, dtype=torch.float32, device=observation.queries.device)
        rows = []
        for query in range(observation.window):
            alone = query_alone(observation, query)
            rows.append(
                F.pad(self._sum_of_changes(alone, one), (0, observation.length - alone.length))
            )
        return torch.stack(rows, dim=2)
