"""Statistics of the queries that a layer shows, turned to positions still to come."""

from __future__ import annotations

import attrs
import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor

from kvpolicy.errors import UnsupportedModelError
from kvpolicy.observation.mean_rotation import MeanRotation
from kvpolicy.observation.observation import Observation
from kvpolicy.observation.rotary import Rotary, pair_sizes
from kvpolicy_kernels import UnrotatedSums, unrotated_sums

NEAR = 512
"""How many positions have cosines and sines of their own. Angles add up: the next NEAR positions
are these, turned by one more angle, and so on. A table for every position of a long prompt would
take more memory than an eviction may."""


@attrs.frozen(kw_only=True, eq=False)
class QueryStatistics:
    """Statistics of the queries of each query head.

    - `mean` and `covariance` are those before rotary embedding, turned to positions still to come.
    - `covariance` is None if it was not asked for.
    - `dispersion` is E|q| - |E q| for each of the P channel pairs that rotary embedding rotates, as
      a complex number q. It is 0 if all queries are alike; None if it was not asked for.
    """

    mean: Float32[Tensor, "B H D"]
    covariance: Float32[Tensor, "B H D D"] | None = None
    dispersion: Float32[Tensor, "B H P"] | None = None


def query_statistics(
    observation: Observation,
    rotary: Rotary,
    ahead: Int[Tensor, " P"],
    *,
    sinks: int = 0,
    covariance: bool = False,
    dispersion: bool = False,
) -> QueryStatistics:
    """Return the statistics of the queries shown.

    With mu and S the mean and covariance before rotary embedding, and R the mean rotation of the
    positions `ahead`, these are R mu and R S R^T. Queries of the first `sinks` tokens of the text
    are left out, unless there are no others.

    >>> from kvpolicy.testing import observation
    >>> layer = observation(positions=9, window=9)
    >>> query_statistics(layer, layer.rotary, torch.arange(9, 12), sinks=4).mean.shape
    torch.Size([1, 4, 8])
    """
    earlier = observation.seen - observation.window
    first = max(0, sinks - earlier)
    first = first if first < observation.window else 0
    count = observation.window - first
    queries = observation.queries[:, :, first:]
    tables = _Tables.of(earlier + first, count, ahead, rotary)
    found = tables.sums(queries, sizes=dispersion)
    mean = found.sums / count
    apart = None if found.sizes is None else tables.dispersion(mean, found.sizes / count)
    if not covariance:
        return QueryStatistics(mean=tables.rotation(mean), dispersion=apart)
    products = tables.sums(queries, centre=mean).products
    assert products is not None  # there is a centre
    # The mean is one more row.
    both = tables.rotation(torch.cat([products / count, mean[:, :, None]], dim=2))
    spread = tables.rotation(both[:, :, :-1].mT).mT
    return QueryStatistics(mean=both[:, :, -1], covariance=spread, dispersion=apart)


def rotary_for(observation: Observation, part: str) -> Rotary:
    """Return the rotary embedding with which `part` turns queries.

    Raises UnsupportedModelError if it is not known.
    """
    if observation.rotary is None:
        raise UnsupportedModelError(
            f"{part} turns queries to positions still to come, but the rotary embedding of this "
            "model is not known. Use another scorer, such as 'snapkv'."
        )
    return observation.rotary


@attrs.frozen(kw_only=True, eq=False)
class _Tables:
    """The cosines and sines of the queries' positions, and the rotation of those ahead."""

    near: tuple[Float[Tensor, "T R"], Float[Tensor, "T R"]]
    further: tuple[Float[Tensor, "C R"], Float[Tensor, "C R"]] | None
    rotation: MeanRotation

    @classmethod
    def of(cls, first: int, count: int, ahead: Int[Tensor, " P"], rotary: Rotary) -> _Tables:
        """Look up the tables of `count` positions from `first` on, and of those ahead, at once."""
        size, blocks = min(count, NEAR), -(-count // NEAR)
        near = torch.arange(first, first + size, device=ahead.device)
        wanted = [near, ahead]
        if blocks > 1:
            wanted.append(torch.arange(first, first + count, NEAR, device=ahead.device))
        cosines, sines = rotary.tables(torch.cat(wanted))
        behind = size + len(ahead)
        rotation = MeanRotation(
            cosines=cosines[size:behind], sines=sines[size:behind], interleaved=rotary.interleaved
        )
        further = None
        if blocks > 1:
            cosine, sine, more, less = cosines[0], sines[0], cosines[behind:], sines[behind:]
            # From the angle of `first` to that of each start.
            further = (
                torch.addcmul(more * cosine, less, sine),
                torch.addcmul(less * cosine, more, sine, value=-1),
            )
        return cls(near=(cosines[:size], sines[:size]), further=further, rotation=rotation)

    def sums(
        self,
        queries: Float[Tensor, "B H w D"],
        *,
        centre: Float[Tensor, "B H D"] | None = None,
        sizes: bool = False,
    ) -> UnrotatedSums:
        """Sum queries before rotary embedding."""
        return unrotated_sums(
            queries,
            self.near,
            further=self.further,
            interleaved=self.rotation.interleaved,
            centre=centre,
            sizes=sizes,
        )

    def dispersion(
        self, mean: Float32[Tensor, "B H D"], sizes: Float32[Tensor, "B H D"]
    ) -> Float32[Tensor, "B H P"]:
        """Return the mean size of each pair, which both channels have, minus the mean's size."""
        size, interleaved = self.near[0].shape[-1], self.rotation.interleaved
        of_pairs = sizes[..., :size:2] if interleaved else sizes[..., : size // 2]
        return of_pairs - pair_sizes(mean, size // 2, interleaved=interleaved)
