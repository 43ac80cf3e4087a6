"""How a model makes attention logits of queries and keys."""

from __future__ import annotations

import attrs
from jaxtyping import Float
from torch import Tensor


@attrs.frozen(kw_only=True, eq=False)
class Logits:
    """The products of queries and keys are scaled, then capped; learned sinks join the softmax.

    logit = softcap * tanh(scaling * q.k / softcap); without a soft cap, scaling * q.k.
    """

    scaling: float
    softcap: float | None = None
    sinks: Float[Tensor, " H"] | None = None
    """A learned logit for each query head."""

    def of_heads(self, heads: slice) -> Logits:
        """Return the logits of some of the query heads."""
        if self.sinks is None:
            return self
        return attrs.evolve(self, sinks=self.sinks[heads])
