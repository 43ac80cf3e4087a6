"""Importance by output reconstruction: what a head's output loses with a position."""

from __future__ import annotations

from typing import Literal, NoReturn

import attrs
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from kvpolicy.errors import InvalidValueError, UnsupportedModelError
from kvpolicy.observation.fold import Reduce, weights_of
from kvpolicy.observation.observation import Observation
from kvpolicy.options import as_float, at_most, boolean, count, one_of, positive
from kvpolicy_kernels import (
    joint_reconstruction_error,
    odds,
    reconstruction_error,
    weighted_values,
    windowed_reconstruction_error,
)


@attrs.frozen(kw_only=True)
class ReconstructionScorer:
    """Scores a position by the error that its eviction alone causes in a head's output.

    score_i = a_i / (1 - a_i) ||W_o (o - v_i)||^tau    with    o = sum_i a_i v_i

    In `mode` "after", `a` is the attention averaged over the window, and `o` leaves the window's
    own values out unless `o_includes_window`. In "before", the score is that of each query with
    its own `a` and `o`, averaged; `normalize` divides each norm by ||W_o o||. `projection` "value"
    leaves out the output projection W_o. With `heads` "joint", all query heads that share a
    position lose it at once, and have one score: ||sum_h a_hi / (1 - a_hi) W_h (o_h - v_i)||.

    An et al., ICLR 2026, https://openreview.net/forum?id=PhEHuo7oMm, Eq. 7; in value space
    Goel et al., https://arxiv.org/abs/2504.14051.

    >>> from kvpolicy import Observation
    >>> scorer = ReconstructionScorer(window=1, projection="value", o_includes_window=True)
    >>> layer = Observation(queries=torch.zeros(1, 1, 1, 1), keys=torch.zeros(1, 1, 3, 1),
    ...                     values=torch.tensor([[[[0.0], [3.0], [6.0]]]]))
    >>> scorer.score(layer, lambda attention: attention.mean(-2))
    tensor([[[1.5000, 0.0000, 1.5000]]])
    """

    window: int = attrs.field(default=32, validator=count)
    mode: Literal["after", "before"] = attrs.field(
        default="after", validator=one_of("after", "before")
    )
    projection: Literal["output", "value"] = attrs.field(
        default="output", validator=one_of("output", "value")
    )
    # Beyond, norms that models have overflow float32.
    tau: float = attrs.field(default=1.0, converter=as_float, validator=[positive, at_most(8)])
    normalize: bool = attrs.field(default=False, validator=boolean)
    o_includes_window: bool = attrs.field(default=False, validator=boolean)
    heads: Literal["alone", "joint"] = attrs.field(
        default="alone", validator=one_of("alone", "joint")
    )

    def __attrs_post_init__(self) -> None:
        """Refuse an option that the mode would ignore."""
        if self.mode == "after" and self.normalize:
            raise InvalidValueError(
                "normalize=True acts on each query's own output: give mode='before'"
            )
        if self.mode == "before" and self.o_includes_window:
            raise InvalidValueError(
                "in mode='before' o has the window in it: drop o_includes_window=True"
            )
        if self.mode == "before" and self.tau != 1:
            raise InvalidValueError(
                f"tau={self.tau} acts on the averaged output only: give mode='after'"
            )
        if self.mode == "before" and self.heads == "joint":
            raise InvalidValueError("heads='joint' takes the averaged attention: give mode='after'")
        if self.heads == "joint" and self.tau != 1:
            raise InvalidValueError(f"tau={self.tau} acts on a head's own norm: give heads='alone'")

    def score(self, observation: Observation, reduce: Reduce) -> Float[Tensor, "B H S"]:
        """Score every position, the window's too; `reduce` folds attention or errors, by `mode`.

        Raises UnsupportedModelError if the output projection is needed but not known.
        """
        if self.heads == "joint":
            return self._joint_error_of_mean(observation, reduce)
        factors = self._factors(observation)
        if self.mode == "after":
            return self._error_of_mean(observation, reduce, factors)
        weights = weights_of(reduce, observation.window)
        if weights is None:
            return reduce(self._errors_of_queries(observation, factors))
        return self._mean_of_errors(observation, weights, factors)

    def _factors(self, observation: Observation) -> Float[Tensor, "H R Dv"] | None:
        if self.projection == "value":
            return None
        factors = observation.output_factors
        return factors if factors is not None else _refuse_without_projection()

    def _group_factors(self, observation: Observation) -> Float[Tensor, "N R GDv"] | None:
        if self.projection == "value":
            return None
        factors = observation.group_factors
        return factors if factors is not None else _refuse_without_projection()

    def _error_of_mean(
        self, observation: Observation, reduce: Reduce, factors: Float[Tensor, "H R Dv"] | None
    ) -> Float[Tensor, "B H S"]:
        attention = observation.folded_attention(reduce)
        output = self._output(observation, attention)
        return reconstruction_error(attention, observation.values, output, factors, tau=self.tau)

    def _joint_error_of_mean(
        self, observation: Observation, reduce: Reduce
    ) -> Float[Tensor, "B H S"]:
        attention = observation.folded_attention(reduce)
        output = self._output(observation, attention)
        factors = self._group_factors(observation)
        errors = joint_reconstruction_error(odds(attention), observation.values, output, factors)
        return errors.repeat_interleave(attention.shape[1] // errors.shape[1], dim=1)

    def _output(
        self, observation: Observation, attention: Float[Tensor, "B H S"]
    ) -> Float[Tensor, "B H Dv"]:
        """Return o, with or without the window's own values."""
        summed = observation.length - (0 if self.o_includes_window else observation.window)
        return weighted_values(attention[..., :summed], observation.values[:, :, :summed])

    def _mean_of_errors(
        self,
        observation: Observation,
        weights: Float[Tensor, " W"],
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
        )

    def _errors_of_queries(
        self, observation: Observation, factors: Float[Tensor, "H R Dv"] | None
    ) -> Float[Tensor, "B H W S"]:
        """Return the unfolded errors, for a `reduce` that is not a weighted sum."""
        rows = []
        for query in range(observation.window):
            seen = observation.length - observation.window + query + 1
            alone = attrs.evolve(
                observation,
                queries=observation.queries[:, :, query : query + 1],
                keys=observation.keys[:, :, :seen],
                values=observation.values[:, :, :seen],
                positions=observation.positions[:, :, :seen],
            )
            errors = self._mean_of_errors(alone, torch.ones(1), factors)
            rows.append(F.pad(errors, (0, observation.length - seen)))
        return torch.stack(rows, dim=2)


def _refuse_without_projection() -> NoReturn:
    raise UnsupportedModelError(
        "scorer 'restkv' measures errors behind the output projection, which this model does not "
        "show. Use projection='value'."
    )
