"""The mean of what each head has evicted, computed from a full cache."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from kvpolicy.exactness.forwards import Forward, held_before


class Average(NamedTuple):
    """A key, a value, and log(count) of what each head has evicted; -inf where it is nothing."""

    key: Float[Tensor, "B N 1 D"]
    value: Float[Tensor, "B N 1 Dv"]
    bias: Float[Tensor, "B N 1 1"]


def average_of_evicted(
    key: Float[Tensor, "B N T D"], value: Float[Tensor, "B N T Dv"], forward: Forward, layer: int
) -> Average:
    """Average the keys and values of a full cache over what a layer had evicted before `forward`.

    These are the real tokens seen before that the layer did not hold. In float32 at least.
    """
    read = forward.real[:, None, : forward.seen]
    key, value = (precise(each[:, :, : forward.seen]) for each in (key, value))
    gone = (read & ~held_before(forward, layer, key.shape[1])).to(key.dtype)
    count = gone.sum(-1)[..., None, None]
    share = gone[:, :, None] / count.clamp(min=1)
    return Average(key=share @ key, value=share @ value, bias=count.log())


def precise(table: Tensor) -> Tensor:
    """Return a table in float32, or in float64 if it is.

    In half precision log(count) would be rounded by percents of the count.
    """
    return table.to(torch.promote_types(table.dtype, torch.float32))
