"""The mean and covariance of a prompt's queries before rotary embedding."""

from __future__ import annotations

from collections.abc import Iterator

import attrs
from jaxtyping import Float, Float32
from torch import Tensor

from kvpolicy.observation.observation import Observation
from kvpolicy.observation.rotary import Rotary, unrotated
from kvpolicy_expectedattention.rotation import MeanRotation
from kvpolicy_kernels import rows_per_block, spans


@attrs.frozen(kw_only=True, eq=False)
class QueryStatistics:
    """The mean and covariance of each query head's queries. `covariance` None means 0."""

    mean: Float32[Tensor, "B H D"]
    covariance: Float32[Tensor, "B H D D"] | None

    def turned(self, rotation: MeanRotation) -> QueryStatistics:
        """Return the statistics after the mean rotation R: R mu and R S R^T."""
        covariance = self.covariance
        if covariance is not None:
            covariance = rotation(rotation(covariance).mT).mT
        return QueryStatistics(mean=rotation(self.mean), covariance=covariance)


def query_statistics(
    observation: Observation, rotary: Rotary, *, sinks: int, covariance: bool
) -> QueryStatistics:
    """Return the statistics of the queries shown.

    Queries of the first `sinks` tokens are left out, unless there are no others.

    >>> from kvpolicy.testing import observation
    >>> layer = observation(positions=9, window=9)
    >>> query_statistics(layer, layer.rotary, sinks=4, covariance=True).covariance.shape
    torch.Size([1, 4, 8, 8])
    """
    first = max(0, sinks - (observation.seen - observation.window))
    first = first if first < observation.window else 0
    count = observation.window - first
    batch, heads, _, dim = observation.queries.shape
    mean = observation.queries.new_zeros((batch, heads, dim)).float()
    for queries in _blocks(observation, rotary, first):
        mean += queries.sum(2) / count
    if not covariance:
        return QueryStatistics(mean=mean, covariance=None)
    spread = mean.new_zeros((batch, heads, dim, dim))
    for queries in _blocks(observation, rotary, first):
        centred = queries - mean[:, :, None]
        spread += centred.mT @ centred / count
    return QueryStatistics(mean=mean, covariance=spread)


def _blocks(
    observation: Observation, rotary: Rotary, first: int
) -> Iterator[Float[Tensor, "B H w D"]]:
    """Yield blocks of the queries from `first` on, in float32 and before rotary embedding."""
    batch, heads, window, dim = observation.queries.shape
    positions = observation.query_positions
    # Rotation holds four tensors of the size of its result.
    step = rows_per_block(4 * batch * heads * dim, positions.device)
    for block in spans(first, window, step):
        yield unrotated(observation.queries[:, :, block], positions[block], rotary)
