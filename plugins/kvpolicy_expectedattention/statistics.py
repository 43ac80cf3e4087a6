"""The mean and covariance of a prompt's queries before rotary embedding."""

from __future__ import annotations

from collections.abc import Iterator

import attrs
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from kvpolicy.observation.observation import Observation
from kvpolicy.observation.rotary import Rotary
from kvpolicy_expectedattention.rotation import MeanRotation
from kvpolicy_kernels import UnrotatedSums, rows_per_block, spans, unrotated_sums


@attrs.frozen(kw_only=True, eq=False)
class QueryStatistics:
    """The mean and covariance of each query head's queries. `covariance` None means 0."""

    mean: Float32[Tensor, "B H D"]
    covariance: Float32[Tensor, "B H D D"] | None

    def turned(self, rotation: MeanRotation) -> QueryStatistics:
        """Return the statistics after the mean rotation R: R mu and R S R^T."""
        if self.covariance is None:
            return QueryStatistics(mean=rotation(self.mean), covariance=None)
        # The mean is one more row.
        both = rotation(torch.cat([self.covariance, self.mean[:, :, None]], dim=2))
        return QueryStatistics(mean=both[:, :, -1], covariance=rotation(both[:, :, :-1].mT).mT)


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
    blocks = _blocks(observation, rotary, first)
    start = next(blocks)
    # Sums are of distances from the mean of the first block, which keeps their digits.
    centre = start(None).sums / start.count
    if start.count == count and not covariance:
        return QueryStatistics(mean=centre, covariance=None)
    found = start(centre)
    if start.count == count:
        return QueryStatistics(mean=centre, covariance=_of(found.products) / count)
    for block in blocks:
        more = block(centre)
        found = UnrotatedSums(found.sums + more.sums, _of(found.products) + _of(more.products))
    apart = found.sums / count
    outer = apart[..., :, None] * apart[..., None, :]
    spread = _of(found.products) / count - outer if covariance else None
    return QueryStatistics(mean=centre + apart, covariance=spread)


@attrs.frozen(kw_only=True, eq=False)
class _Block:
    """Some of the queries, and the cosines and sines of their positions."""

    queries: Float[Tensor, "B H w D"]
    tables: tuple[Float[Tensor, "w R"], Float[Tensor, "w R"]]
    interleaved: bool

    @property
    def count(self) -> int:
        return self.queries.shape[2]

    def __call__(self, centre: Float[Tensor, "B H D"] | None) -> UnrotatedSums:
        return unrotated_sums(
            self.queries, self.tables, interleaved=self.interleaved, centre=centre
        )


def _of(products: Float32[Tensor, "B H D D"] | None) -> Float32[Tensor, "B H D D"]:
    assert products is not None  # there is a centre
    return products


def _blocks(observation: Observation, rotary: Rotary, first: int) -> Iterator[_Block]:
    """Yield blocks of the queries from `first` on."""
    positions = observation.query_positions
    # The tables of a position, and what they are computed from, are some numbers of each channel.
    layer = observation.keys.nbytes + observation.values.nbytes
    step = rows_per_block(10 * observation.queries.shape[3], positions.device, layer=layer)
    for block in spans(first, observation.window, step):
        yield _Block(
            queries=observation.queries[:, :, block],
            tables=rotary.tables(positions[block]),
            interleaved=rotary.interleaved,
        )
