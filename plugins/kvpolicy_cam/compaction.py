"""Compact by merging: add the values of evicted positions to the kept positions after them."""

from __future__ import annotations

from typing import ClassVar

import attrs
from jaxtyping import Float
from torch import Tensor

from kvpolicy.observation.observation import Observation
from kvpolicy.options import count, natural
from kvpolicy.stages.compaction import Evicted, merged
from kvpolicy.stages.selection import Selection
from kvpolicy_cam.merging import draws, window_attention
from kvpolicy_kernels import heirs, inherited_values


@attrs.frozen(kw_only=True)
class CacheMergingCompactor:
    """Adds the value of an evicted position, with some probability, to the kept ones after it.

    v_j <- v_j + b_i v_i / m  for the m kept positions j that follow the evicted i,
    b_i ~ Bernoulli(min(1, a_i / mean of their a_j))

    m is `neighbours`, or the number of kept positions that follow if it is smaller. `a` is the
    attention of the queries shown, averaged over them and over the group. Keys do not change. The
    draws depend on `seed`, the layer and the tokens seen, and not on the device. All sequences of
    a batch get the same draws.

    Zhang et al., ICML 2024, https://openreview.net/forum?id=LCTmppB165.

    >>> import torch
    >>> from kvpolicy import Observation, Selection
    >>> values = torch.tensor([[[[8.0], [1.0], [2.0], [3.0]]]])
    >>> layer = Observation(queries=torch.zeros(1, 1, 1, 1), keys=torch.zeros(1, 1, 4, 1),
    ...                     values=values)
    >>> last = Selection(indices=torch.tensor([[[1, 2, 3]]]), lengths=torch.tensor([[3]]))
    >>> merging = CacheMergingCompactor(neighbours=2)
    >>> merging.compact(layer.keys, values, last, layer)[1].flatten()
    tensor([5., 6., 3.])
    """

    position_bias: ClassVar[bool] = True

    neighbours: int = attrs.field(default=32, validator=count)
    seed: int = attrs.field(default=0, validator=natural)

    def compact(
        self,
        keys: Float[Tensor, "B N S D"],
        values: Float[Tensor, "B N S Dv"],
        selection: Selection,
        observation: Observation,
    ) -> tuple[Float[Tensor, "B N K D"], Float[Tensor, "B N K Dv"]]:
        """Return the kept keys, and the kept values with the merged values added."""

        def merge(
            kept_keys: Tensor, kept_values: Tensor, evicted: Evicted
        ) -> tuple[Tensor, Tensor]:
            first, shares = heirs(
                window_attention(observation),
                draws(self.seed, observation),
                selection.indices,
                evicted.rows,
                self.neighbours,
            )
            return kept_keys, inherited_values(
                kept_values, values, evicted.rows, first, shares, self.neighbours
            )

        return merged(keys, values, selection, merge)
