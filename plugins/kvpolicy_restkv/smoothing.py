"""Smooth by an exponential average over the window, and by pooling that follows drift."""

from __future__ import annotations

from typing import ClassVar, Literal

import attrs
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from kvpolicy.observation.observation import Observation
from kvpolicy.options import as_float, at_least, at_most, odd_count, one_of, positive
from kvpolicy_kernels import adaptive_pooling, pool_scores
from kvpolicy_restkv.drift import attention_drift

Averaging = Literal["ema", "mean", "none", "inverse"]
Pooling = Literal["adaptive", "avg", "max", "none"]


@attrs.frozen(kw_only=True)
class SpatiotemporalSmoother:
    """Gives late queries more weight, and pools over neighbours, wider if attention drifts.

    Time, by `averaging`: "ema" is s_t = alpha x_t + (1 - alpha) s_(t-1) with s_0 = x_0, as one
    weighted sum. "inverse" is the same backwards in time. "none" is only the newest query. "mean"
    is the mean.

    Space, by `pooling`: only scores of the past are pooled. "adaptive" is a mean over at least
    `width` positions, shifted against the drift of attention. Drift counts in units of `scale`
    positions (see `kvpolicy_kernels.adaptive_pooling`). `drift` "row" measures it in each row of
    the batch, "first" in the first row for all. "avg" takes zeros for positions outside, as the
    authors' code does.

    An et al., ICLR 2026, https://openreview.net/forum?id=PhEHuo7oMm.

    >>> SpatiotemporalSmoother(alpha=0.5).weights(3)
    tensor([0.2500, 0.2500, 0.5000])
    """

    position_bias: ClassVar[bool] = True

    averaging: Averaging = attrs.field(
        default="ema", validator=one_of("ema", "mean", "none", "inverse")
    )
    alpha: float = attrs.field(default=0.3, converter=as_float, validator=[positive, at_most(1)])
    pooling: Pooling = attrs.field(
        default="adaptive", validator=one_of("adaptive", "avg", "max", "none")
    )
    width: int = attrs.field(default=5, validator=odd_count)
    # With a smaller `scale`, drift would give widths that are many times the prompt.
    scale: float = attrs.field(
        default=2000.0, converter=as_float, validator=[positive, at_least(0.1)]
    )
    drift: Literal["row", "first"] = attrs.field(default="row", validator=one_of("row", "first"))

    def weights(self, window: int) -> Float[Tensor, " W"]:
        """Return w_t = alpha (1 - alpha)^(W - 1 - t) and w_0 = (1 - alpha)^(W - 1), for "ema"."""
        return self._weights(window).float()

    def _weights(self, window: int) -> Float64[Tensor, " W"]:
        if self.averaging == "mean":
            return torch.full((window,), 1 / window, dtype=torch.float64, device="cpu")
        alpha = 1.0 if self.averaging == "none" else self.alpha
        age = torch.arange(window - 1, -1, -1, dtype=torch.float64, device="cpu")
        weights = alpha * (1 - alpha) ** age
        weights[0] = (1 - alpha) ** (window - 1)
        return weights.flip(0) if self.averaging == "inverse" else weights

    def temporal(self, values: Float[Tensor, "*lead W S"]) -> Float[Tensor, "*lead S"]:
        """Return the weighted sum over the window's queries."""
        weights = self._weights(values.shape[-2]).to(values)
        return torch.einsum("...ws,w->...s", values, weights)

    def spatial(
        self, scores: Float[Tensor, "B H S"], observation: Observation
    ) -> Float[Tensor, "B H S"]:
        """Pool the scores of the past."""
        if self.pooling == "none":
            return scores
        past = observation.length - observation.window
        pooled = self._pool(scores[..., :past], observation)
        return torch.cat([pooled, scores[..., past:]], dim=-1)

    def _pool(
        self, past: Float[Tensor, "B H P"], observation: Observation
    ) -> Float[Tensor, "B H P"]:
        if self.pooling in ("avg", "max"):
            return pool_scores(past, self.width, mode=self.pooling, edges="zero")
        drift = attention_drift(observation)
        if drift is None:
            return pool_scores(past, self.width)
        if self.drift == "first":
            drift = drift[:1].expand_as(drift)
        return pool_scores(past, *adaptive_pooling(drift, width=self.width, scale=self.scale))
