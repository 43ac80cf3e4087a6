"""Score by expected attention: that of future queries with the statistics of the prompt's."""

from __future__ import annotations

from typing import ClassVar

import attrs
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from kvpolicy.observation.fold import Reduce
from kvpolicy.observation.norms import row_norms
from kvpolicy.observation.observation import Observation
from kvpolicy.observation.query_statistics import query_statistics, rotary_for
from kvpolicy.observation.rotary import Rotary
from kvpolicy.observation.softmax import softmax
from kvpolicy.options import as_float, at_most, boolean, count, natural, share
from kvpolicy_kernels import gaussian_logits

FARTHEST = 2**17
"""The largest `future`: each future position needs a row of cosines and sines."""


@attrs.frozen(kw_only=True)
class ExpectedAttentionScorer:
    """Scores a position by the expected attention of Gaussian queries, times its value's norm.

    z_i = c mu k_i + c^2 / 2 k_i S k_i,   score_i = (softmax_i(z) + epsilon) ||v_i||

    mu and S are the mean and covariance of the queries shown, before rotary embedding. Then the
    mean rotation of the next `future` positions is applied. c is the scale of the logits. The first
    `sinks` tokens of the sequence are left out of statistics and softmax, and get the best score of
    the head. `covariance=False` leaves out S, and `values=False` leaves out ||v_i||. The smoother's
    temporal part has no effect: all queries count equally.

    Devoto et al., https://arxiv.org/abs/2510.00636.

    >>> from kvpolicy.testing import observation
    >>> scorer = ExpectedAttentionScorer(values=False)
    >>> scores = scorer.score(observation(positions=9, window=9), lambda values: values.mean(-2))
    >>> scores[..., 4:].sum(-1)
    tensor([[1.0000, 1.0000, 1.0000, 1.0000]])
    """

    future: int = attrs.field(default=512, validator=[count, at_most(FARTHEST)])
    sinks: int = attrs.field(default=4, validator=natural)
    covariance: bool = attrs.field(default=True, validator=boolean)
    values: bool = attrs.field(default=True, validator=boolean)
    epsilon: float = attrs.field(default=0.0, converter=as_float, validator=share)

    window: ClassVar[None] = None
    prefill_only: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("rotary",)

    def score(self, observation: Observation, reduce: Reduce) -> Float[Tensor, "B H S"]:
        """Score every position by the expected attention of future queries.

        Raises UnsupportedModelError if the rotary embedding is not known.
        """
        rotary = rotary_for(observation, "scorer 'expectedattention'")
        sinks = observation.positions < self.sinks
        scores = self._attention(observation, rotary, sinks).add_(self.epsilon)
        if self.values:
            scores *= row_norms(observation.values)[:, :, None]
        # Of equal scores the earlier position is kept, so sinks are kept before other positions.
        return torch.where(sinks[:, :, None], scores.amax(-1, keepdim=True), scores).flatten(1, 2)

    def _attention(
        self, observation: Observation, rotary: Rotary, sinks: Bool[Tensor, "B N S"]
    ) -> Float[Tensor, "B N G S"]:
        keys, seen = observation.keys, observation.seen
        ahead = torch.arange(seen, seen + self.future, device=keys.device)
        found = query_statistics(
            observation, rotary, ahead, sinks=self.sinks, covariance=self.covariance
        )
        logits = gaussian_logits(keys, found.mean, found.covariance, scaling=observation.scaling)
        by_group = logits.unflatten(1, (sinks.shape[1], -1))
        # Not -inf: a sequence may have only sinks, and the softmax would then be NaN.
        by_group.masked_fill_(sinks[:, :, None], torch.finfo(logits.dtype).min)
        return softmax(logits, observation.sink_logits).view_as(by_group)
