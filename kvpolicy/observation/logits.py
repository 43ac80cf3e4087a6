"""How a model computes attention logits from queries and keys."""

from __future__ import annotations

import attrs
from jaxtyping import Float
from torch import Tensor


@attrs.frozen(kw_only=True, eq=False)
class Logits:
    """The scale, soft cap and learned sinks of a layer's attention.

    logit = softcap * tanh(scaling * q.k / softcap); without a soft cap, scaling * q.k. The softmax
    also runs over the learned sink of the head.
    """

    scaling: float
    softcap: float | None = None
    sinks: Float[Tensor, " H"] | None = None
    """The learned sink of each query head; None if the model has none."""

    def of_heads(self, heads: slice) -> Logits:
        """Return the same settings for some of the query heads."""
        if self.sinks is None:
            return self
        return attrs.evolve(self, sinks=self.sinks[heads])
