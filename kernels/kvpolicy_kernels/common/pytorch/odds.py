"""The odds of being attended."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

LEAST_REST = 2.0**-20
"""The least that 1 - a counts as. A sink can take all attention but a rounding error."""


def odds(attention: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return the odds a / (1 - a) of attention a, where 1 - a counts as at least 2 ** -20.

    >>> import torch
    >>> odds(torch.tensor([0.0, 0.5, 1.0]))
    tensor([0.0000e+00, 1.0000e+00, 1.0486e+06])
    """
    return attention / (1 - attention).clamp_min(LEAST_REST)
