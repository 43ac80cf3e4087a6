"""The mean and covariance of a prompt's queries before rotary embedding."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import chain
from typing import TypeAlias

import attrs
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from kvpolicy.observation.observation import Observation
from kvpolicy.observation.rotary import Rotary
from kvpolicy_expectedattention.rotation import MeanRotation
from kvpolicy_kernels import rows_per_block, spans, unrotated_sums

Tables: TypeAlias = tuple[Float[Tensor, "w R"], Float[Tensor, "w R"]]
"""The cosines and sines of some positions."""

NUMBERS = 10
"""Numbers of a channel that a CPU's cache holds while the tables of a position are used."""
NUMBERS_ON_A_GPU = 3
"""Those that are held at once while the tables of a position are computed."""


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
    queries = observation.queries[:, :, first:]
    count, tables = queries.shape[2], _tables(observation, rotary, first)
    held = [next(tables)]
    start = len(held[0][0])
    sums = partial(unrotated_sums, interleaved=rotary.interleaved)
    # Sums are of distances from the mean of the first block, which keeps their digits.
    centre = sums(queries[:, :, :start], held).sums / start
    if start == count and not covariance:
        return QueryStatistics(mean=centre, covariance=None)
    found = sums(queries, chain(_given_away(held), tables), centre=centre)
    products = found.products if covariance else None
    if start == count:
        return QueryStatistics(mean=centre, covariance=_divided(products, count))
    apart = found.sums / count
    spread = _divided(products, count)
    if spread is not None:
        spread = spread - apart[..., :, None] * apart[..., None, :]
    return QueryStatistics(mean=centre + apart, covariance=spread)


def _divided(
    products: Float32[Tensor, "B H D D"] | None, count: int
) -> Float32[Tensor, "B H D D"] | None:
    return None if products is None else products / count


def _given_away(held: list[Tables]) -> Iterator[Tables]:
    """Yield tables that are held nowhere else from then on."""
    while held:
        yield held.pop()


def _tables(observation: Observation, rotary: Rotary, first: int) -> Iterator[Tables]:
    """Yield the cosines and sines of the queries from `first` on, in blocks."""
    positions = observation.query_positions
    layer = observation.keys.nbytes + observation.values.nbytes
    numbers = NUMBERS_ON_A_GPU if positions.device.type == "cuda" else NUMBERS
    step = rows_per_block(numbers * observation.queries.shape[3], positions.device, layer=layer)
    for block in spans(first, observation.window, step):
        yield rotary.tables(positions[block])
