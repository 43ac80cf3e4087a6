"""Score at random."""

from __future__ import annotations

from typing import ClassVar

import attrs
from jaxtyping import Float
from torch import Tensor

from kvpolicy.observation.draws import drawn
from kvpolicy.observation.fold import Reduce
from kvpolicy.observation.observation import Observation
from kvpolicy.options import at_most, count, natural


@attrs.frozen(kw_only=True)
class RandomScorer:
    """Scores positions by independent draws for every layer, head and position.

    The draws depend on `seed`, the layer and the number of positions, and not on the device. All
    sequences of a batch get the same draws, so no sequence depends on the others.

    >>> import torch
    >>> from kvpolicy import Observation
    >>> layer = Observation(queries=torch.ones(1, 1, 1, 1), keys=torch.ones(1, 1, 3, 1),
    ...                     values=torch.ones(1, 1, 3, 1))
    >>> RandomScorer(seed=7).score(layer, lambda attention: attention.mean(-2)).shape
    torch.Size([1, 1, 3])
    """

    position_bias: ClassVar[bool] = True

    window: int = attrs.field(default=1, validator=count)
    seed: int = attrs.field(default=0, validator=[natural, at_most(2**32 - 1)])

    def score(self, observation: Observation, reduce: Reduce) -> Float[Tensor, "B H S"]:
        """Return draws from [0, 1). Attention is not used."""
        batch, heads = observation.queries.shape[:2]
        before, seed = observation.first_of_layer, self.seed * observation.num_layers
        draws = drawn(
            before + heads,
            observation.length,
            seed + observation.layer,
            observation.keys.device,
        )
        return draws[before:].expand(batch, -1, -1)
