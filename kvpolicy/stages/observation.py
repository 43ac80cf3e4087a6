"""Observe: what one attention layer shows to a policy when a prompt has been read."""

from __future__ import annotations

import attrs
import torch
from jaxtyping import Float, Int
from torch import Tensor

from kvpolicy.stages.projection import output_factors
from kvpolicy.stages.reduction import Reduce, weights_of
from kvpolicy_kernels import window_attention


def _shape(tensor: Tensor | None) -> str:
    return "None" if tensor is None else f"<{str(tensor.dtype)[6:]} {list(tensor.shape)}>"


@attrs.frozen(kw_only=True, eq=False)
class Observation:
    """One layer's last queries and its whole key/value cache, after rotary embedding.

    Padding never reaches a policy: rows of unequal length are shown one by one. The W queries are
    the last W tokens and the last W of the S positions are their keys, so query w attends to
    positions 0 ... S - W + w.

    >>> layer = Observation(queries=torch.ones(1, 4, 2, 8), keys=torch.ones(1, 2, 9, 8),
    ...                     values=torch.ones(1, 2, 9, 8))
    >>> layer.window, layer.length, layer.seen
    (2, 9, 9)
    """

    queries: Float[Tensor, "B H W D"] = attrs.field(repr=_shape)
    keys: Float[Tensor, "B N S D"] = attrs.field(repr=_shape)
    values: Float[Tensor, "B N S Dv"] = attrs.field(repr=_shape)
    layer: int = 0
    num_layers: int = 1
    scaling: float = attrs.field()
    softcap: float | None = None
    output_weight: Float[Tensor, "M H*Dv"] | None = attrs.field(default=None, repr=_shape)
    positions: Int[Tensor, "B N S"] = attrs.field(repr=_shape)
    seen: int = attrs.field()
    budget: int = attrs.field()

    @scaling.default
    def _one_over_root_dim(self) -> float:
        return float(self.queries.shape[-1] ** -0.5)

    @positions.default
    def _nothing_evicted(self) -> Int[Tensor, "B N S"]:
        return torch.arange(self.length, device=self.keys.device).expand(self.keys.shape[:3])

    @seen.default
    def _as_many_as_held(self) -> int:
        return self.length

    @budget.default
    def _all_of_it(self) -> int:
        return self.length

    @property
    def window(self) -> int:
        """W, the number of queries shown: at most the scorer's window."""
        return self.queries.shape[2]

    @property
    def length(self) -> int:
        """S, the number of positions held."""
        return self.keys.shape[2]

    @property
    def attention(self) -> Float[Tensor, "B H W S"]:
        """Causal softmax attention of every query, in float32; `folded_attention` is smaller."""
        groups = self.queries.shape[1] // self.keys.shape[1]
        keys = self.keys.float().repeat_interleave(groups, dim=1)
        logits = self.queries.float() @ keys.mT * self.scaling
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        future = torch.ones(logits.shape[-2:], dtype=torch.bool, device=logits.device)
        future = future.triu(self.length - self.window + 1)
        return logits.masked_fill(future, -torch.inf).softmax(-1)

    def folded_attention(self, reduce: Reduce) -> Float[Tensor, "B H S"]:
        """Attention with the window folded by `reduce`; never [B, H, W, S] if that is linear."""
        weights = weights_of(reduce, self.window)
        if weights is None:
            return reduce(self.attention)
        return window_attention(
            self.queries,
            self.keys,
            weights.to(self.queries.device, torch.float32),
            scaling=self.scaling,
            softcap=self.softcap,
        ).attention

    @property
    def output_factors(self) -> Float[Tensor, "H R Dv"] | None:
        """R of the QR of each head's part of the output projection; None if it has none.

        ||R_h x|| = ||W_h x|| for all x, at D x D instead of M x D.
        """
        if self.output_weight is None:
            return None
        return output_factors(self.output_weight, self.queries.shape[1])
