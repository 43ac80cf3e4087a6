"""Scorer `jointrestkv`: the error that evicting a position causes in a whole group of heads."""

from __future__ import annotations

from typing import ClassVar

import attrs
from jaxtyping import Float
from torch import Tensor

from kvpolicy.errors import UnsupportedModelError
from kvpolicy.observation.fold import Reduce
from kvpolicy.observation.observation import Observation
from kvpolicy.options import boolean, count, one_of
from kvpolicy.pipeline.capabilities import ModelFacts
from kvpolicy_kernels import joint_reconstruction_error
from kvpolicy_restkv.projection import PROJECTIONS, Projection, group_factors, needs
from kvpolicy_restkv.scoring import summed_in_output


@attrs.frozen(kw_only=True)
class JointReconstructionScorer:
    """Scores a position by the error that evicting it causes in all query heads of its group.

    score_i = ||sum_h a_hi / (1 - a_hi) W_h (o_h - v_i)||    with    o_h = sum_i a_hi v_i

    The sum is over the query heads h of the group, because they share the position. All of them get
    the same score. The paper scores each head alone: see `kvpolicy_restkv.scoring`, which also
    explains the options.

    >>> import torch
    >>> from kvpolicy import Observation
    >>> scorer = JointReconstructionScorer(window=1, o_includes_window=True)
    >>> layer = Observation(queries=torch.zeros(1, 2, 1, 1), keys=torch.zeros(1, 1, 3, 1),
    ...                     values=torch.tensor([[[[0.0], [3.0], [6.0]]]]),
    ...                     output_weight=torch.ones(1, 2))
    >>> scorer.score(layer, lambda attention: attention.mean(-2))
    tensor([[[3.0000, 0.0000, 3.0000],
             [3.0000, 0.0000, 3.0000]]])
    """

    replayable: ClassVar[bool] = True
    position_bias: ClassVar[bool] = True

    window: int = attrs.field(default=32, validator=count)
    projection: Projection = attrs.field(default="output", validator=one_of(*PROJECTIONS))
    o_includes_window: bool = attrs.field(default=False, validator=boolean)

    @property
    def needs(self) -> tuple[str, ...]:
        """What the model must show: its output projection, unless errors are those of values."""
        return needs(self.projection)

    def check_model(self, model: ModelFacts) -> None:
        """Raise UnsupportedModelError if layers share keys: their outputs are no joint output."""
        if model.readers > 1:
            raise UnsupportedModelError(
                f"scorer 'jointrestkv' measures the joint output of a group of heads, but in "
                f"{model.name} {model.readers} layers attend with the same keys and values, and "
                "each has an output of its own. Use 'restkv'."
            )

    def score(self, observation: Observation, reduce: Reduce) -> Float[Tensor, "B H S"]:
        """Score every position, also those of the window. `reduce` averages the attention.

        Raises UnsupportedModelError if `projection` is "output" and the projection is not known.
        """
        factors = group_factors(observation, self.projection, scorer="jointrestkv")
        attention = observation.folded_attention(reduce)
        errors = joint_reconstruction_error(
            attention,
            observation.values,
            factors,
            summed=summed_in_output(observation, with_window=self.o_includes_window),
            learned_sinks=observation.sink_logits is not None,
        )
        return errors.repeat_interleave(attention.shape[1] // errors.shape[1], dim=1)
