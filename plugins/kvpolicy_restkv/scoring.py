"""Scorer `restkv`: the error that evicting a position causes in each head's averaged output."""

from __future__ import annotations

from typing import ClassVar

import attrs
from jaxtyping import Float
from torch import Tensor

from kvpolicy.observation.fold import Reduce
from kvpolicy.observation.observation import Observation
from kvpolicy.options import as_float, at_most, boolean, count, one_of, positive
from kvpolicy_kernels import leave_one_out_error
from kvpolicy_restkv.projection import PROJECTIONS, Projection, head_factors, needs

LARGEST_TAU = 8
"""With a larger `tau`, norms that occur in models overflow float32."""


@attrs.frozen(kw_only=True)
class ReconstructionScorer:
    """Scores a position by the error in a head's output if only this position is evicted.

    score_i = a_i / (1 - a_i) ||W_h (o - v_i)||^tau    with    o = sum_i a_i v_i

    Here `a` is the attention averaged over the observation window, and W_h are the columns of the
    output projection of query head h.

    `window`: the number of last queries.
    `projection`: "output" as above; "value" leaves out W_h.
    `tau`: the power of the norm, above 0 and at most 8.
    `o_includes_window`: whether o also sums over the window's positions. False is the published
    method. True gives the exact error of the averaged attention.

    An et al., ICLR 2026, https://openreview.net/forum?id=PhEHuo7oMm, Eq. 7; in value space
    Goel et al., https://arxiv.org/abs/2504.14051.

    >>> import torch
    >>> from kvpolicy import Observation
    >>> scorer = ReconstructionScorer(window=1, projection="value", o_includes_window=True)
    >>> layer = Observation(queries=torch.zeros(1, 1, 1, 1), keys=torch.zeros(1, 1, 3, 1),
    ...                     values=torch.tensor([[[[0.0], [3.0], [6.0]]]]))
    >>> scorer.score(layer, lambda attention: attention.mean(-2))
    tensor([[[1.5000, 0.0000, 1.5000]]])
    """

    replayable: ClassVar[bool] = True
    position_bias: ClassVar[bool] = True

    window: int = attrs.field(default=32, validator=count)
    projection: Projection = attrs.field(default="output", validator=one_of(*PROJECTIONS))
    tau: float = attrs.field(
        default=1.0, converter=as_float, validator=[positive, at_most(LARGEST_TAU)]
    )
    o_includes_window: bool = attrs.field(default=False, validator=boolean)

    @property
    def needs(self) -> tuple[str, ...]:
        """What the model must show: its output projection, unless errors are those of values."""
        return needs(self.projection)

    def score(self, observation: Observation, reduce: Reduce) -> Float[Tensor, "B H S"]:
        """Score every position, also those of the window. `reduce` averages the attention.

        Raises UnsupportedModelError if `projection` is "output" and the projection is not known.
        """
        factors = head_factors(observation, self.projection, scorer="restkv")
        attention = observation.folded_attention(reduce)
        return leave_one_out_error(
            attention,
            observation.values,
            factors,
            summed=summed_in_output(observation, with_window=self.o_includes_window),
            tau=self.tau,
            learned_sinks=observation.sink_logits is not None,
        )


def summed_in_output(observation: Observation, *, with_window: bool) -> int:
    """Return over how many of the first positions o sums: all, or those before the window.

    Queries that are ahead have no window among the positions.
    """
    left_out = 0 if with_window or observation.ahead else observation.window
    return observation.length - left_out
