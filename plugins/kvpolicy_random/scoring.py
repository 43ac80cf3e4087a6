"""Importance by chance."""

from __future__ import annotations

import attrs
import torch
from jaxtyping import Float
from torch import Tensor

from kvpolicy.observation.fold import Reduce
from kvpolicy.observation.observation import Observation
from kvpolicy.options import at_most, count, natural


@attrs.frozen(kw_only=True)
class RandomScorer:
    """Scores positions by independent draws for every layer, head and position.

    The draws depend on `seed`, the layer and the number of positions, not on the device. Every
    sequence of a batch gets the same ones, so that none depends on its batch mates.

    >>> from kvpolicy import Observation
    >>> layer = Observation(queries=torch.ones(1, 1, 1, 1), keys=torch.ones(1, 1, 3, 1),
    ...                     values=torch.ones(1, 1, 3, 1))
    >>> RandomScorer(seed=7).score(layer, lambda attention: attention.mean(-2)).shape
    torch.Size([1, 1, 3])
    """

    window: int = attrs.field(default=1, validator=count)
    seed: int = attrs.field(default=0, validator=[natural, at_most(2**32 - 1)])

    def score(self, observation: Observation, reduce: Reduce) -> Float[Tensor, "B H S"]:
        """Draw from [0, 1); the attention is not looked at."""
        batch, heads = observation.queries.shape[:2]
        generator = torch.Generator("cpu")
        generator.manual_seed(self.seed * observation.num_layers + observation.layer)
        before = observation.first_of_layer
        draws = torch.rand(
            (before + heads, observation.length),
            generator=generator,
            dtype=torch.float32,
            device="cpu",
        )[before:]
        return draws.to(observation.keys.device).expand(batch, -1, -1)
