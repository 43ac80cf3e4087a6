"""The factors of the output projection for reconstruction errors; none in value space."""

from __future__ import annotations

from typing import Literal, TypeAlias

from jaxtyping import Float
from torch import Tensor

from kvpolicy.errors import UnsupportedModelError
from kvpolicy.observation.observation import Observation

Projection: TypeAlias = Literal["output", "value"]
"""Where errors are measured: after the output projection, or before it, in value space."""

PROJECTIONS = ("output", "value")


def needs(projection: Projection) -> tuple[str, ...]:
    """Return which optional fields of an observation errors are measured with."""
    return ("output_weight",) if projection == "output" else ()


def head_factors(
    observation: Observation, projection: Projection, *, scorer: str
) -> Float[Tensor, "H R Dv"] | None:
    """Return the factor R_h of each query head's projection W_h; None in value space.

    Raises UnsupportedModelError, which names `scorer`, if the projection is not known.
    """
    if projection == "value":
        return None
    return _known(observation.output_factors, scorer)


def group_factors(
    observation: Observation, projection: Projection, *, scorer: str
) -> Float[Tensor, "N R GDv"] | None:
    """Return the factor R_g of each group's stacked projections; None in value space.

    Raises UnsupportedModelError, which names `scorer`, if the projection is not known.
    """
    if projection == "value":
        return None
    return _known(observation.group_factors, scorer)


def _known(factors: Tensor | None, scorer: str) -> Tensor:
    if factors is None:
        raise UnsupportedModelError(
            f"scorer {scorer!r} needs the output projection, which is not known for this model. "
            "Use projection='value' to measure errors before the projection."
        )
    return factors
