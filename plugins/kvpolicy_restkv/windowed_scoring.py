"""Scorer `windowedrestkv`: the error in the output of each query, averaged over the window."""

from __future__ import annotations

from typing import ClassVar

import attrs
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from kvpolicy.observation.alone import query_alone
from kvpolicy.observation.fold import Reduce, Weights, weights_of
from kvpolicy.observation.observation import Observation
from kvpolicy.options import boolean, count, one_of
from kvpolicy_kernels import windowed_reconstruction_error
from kvpolicy_restkv.projection import PROJECTIONS, Projection, head_factors, needs


@attrs.frozen(kw_only=True)
class WindowedReconstructionScorer:
    """Scores a position by the mean error in the outputs of the window's queries.

    score_i = sum_t w_t a_ti / (1 - a_ti) ||W_h (o_t - v_i)||    with    o_t = sum_i a_ti v_i

    Each query t of the window has its own attention and output. The smoother's weights w_t average
    the errors. (`kvpolicy_restkv.scoring` averages the attention first.)

    `window`: the number of last queries.
    `projection`: "output" as above; "value" leaves out W_h.
    `normalize`: divides each norm by ||W_h o_t||, which makes the error relative.

    An et al., ICLR 2026, https://openreview.net/forum?id=PhEHuo7oMm: "before" in the authors' code.

    >>> from kvpolicy import Observation
    >>> scorer = WindowedReconstructionScorer(window=2, projection="value")
    >>> layer = Observation(queries=torch.zeros(1, 1, 2, 1), keys=torch.zeros(1, 1, 3, 1),
    ...                     values=torch.tensor([[[[0.0], [3.0], [6.0]]]]))
    >>> scorer.score(layer, lambda errors: errors.mean(-2))
    tensor([[[1.5000, 0.7500, 0.7500]]])
    """

    replayable: ClassVar[bool] = True

    window: int = attrs.field(default=32, validator=count)
    projection: Projection = attrs.field(default="output", validator=one_of(*PROJECTIONS))
    normalize: bool = attrs.field(default=False, validator=boolean)

    @property
    def needs(self) -> tuple[str, ...]:
        """What the model must show: its output projection, unless errors are those of values."""
        return needs(self.projection)

    def score(self, observation: Observation, reduce: Reduce) -> Float[Tensor, "B H S"]:
        """Score every position, also those of the window. `reduce` averages the queries' errors.

        Raises UnsupportedModelError if `projection` is "output" and the projection is not known.
        """
        factors = head_factors(observation, self.projection, scorer="windowedrestkv")
        weights = weights_of(reduce, observation.window)
        if weights is None:
            return reduce(self._errors_of_queries(observation, factors))
        return self._sum_of_errors(observation, weights, factors)

    def _sum_of_errors(
        self,
        observation: Observation,
        weights: Weights,
        factors: Float[Tensor, "H R Dv"] | None,
    ) -> Float[Tensor, "B H S"]:
        return windowed_reconstruction_error(
            observation.queries,
            observation.keys,
            observation.values,
            weights.to(observation.queries.device, torch.float32),
            factors,
            scaling=observation.scaling,
            softcap=observation.softcap,
            sinks=observation.sink_logits,
            normalize=self.normalize,
            causal=not observation.ahead,
        )

    def _errors_of_queries(
        self, observation: Observation, factors: Float[Tensor, "H R Dv"] | None
    ) -> Float[Tensor, "B H W S"]:
        """Return the error of each query, for a `reduce` that is no weighted sum."""
        rows = []
        for query in range(observation.window):
            alone = query_alone(observation, query)
            one = torch.ones(1, dtype=torch.float32, device="cpu")
            errors = self._sum_of_errors(alone, one, factors)
            rows.append(F.pad(errors, (0, observation.length - alone.length)))
        return torch.stack(rows, dim=2)
