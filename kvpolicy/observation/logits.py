"""How a model computes attention logits from queries and keys."""

from __future__ import annotations

import attrs
from jaxtyping import Float
from torch import Tensor

from kvpolicy.observation.position_bias import PositionBias


@attrs.frozen(kw_only=True, eq=False)
class Logits:
    """The scale, soft cap, position bias and learned sinks of a layer's attention.

    logit = softcap * tanh(scaling * q.k / softcap) + bias; without a soft cap, scaling * q.k +
    bias. The softmax also runs over the learned sink of the head.
    """

    scaling: float
    softcap: float | None = None
    sinks: Float[Tensor, " H"] | None = None
    """The learned sink of each query head; None if the model has none."""
    bias: PositionBias | None = None
    """What the model adds by the distance of query and key; None if it adds nothing."""

    def of_heads(self, heads: slice) -> Logits:
        """Return the same settings for some of the query heads."""
        if self.sinks is None and self.bias is None:
            return self
        sinks = None if self.sinks is None else self.sinks[heads]
        bias = None if self.bias is None else self.bias.of_heads(heads)
        return attrs.evolve(self, sinks=sinks, bias=bias)
