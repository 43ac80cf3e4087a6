"""Evicted rows whose values go to their heirs: the kept rows that follow them."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor

from kvpolicy_kernels.backend import implementation
from kvpolicy_kernels.checks import require
from kvpolicy_kernels.heirs.reference import Heirs

__all__ = ["Heirs", "heirs", "inherited_values"]


def heirs(
    attention: Float[Tensor, "B N S"],
    draws: Float[Tensor, "B N S"],
    kept: Int[Tensor, "B N K"],
    evicted: Int[Tensor, "B N E"],
    most: int,
) -> Heirs:
    """Return where the heirs of each evicted row begin, and the share of its value for each heir.

    The heirs of an evicted row are the first m kept rows behind it; m is `most`, or as many as
    there are. With a for attention and u for draws, which are from [0, 1),

    share_i = 1 / m  if  u_i < min(1, a_i / mean_j a_j), else 0

    An evicted row without heirs, and one whose heirs and itself have no attention, has a share of
    0. Kept and evicted rows ascend, with fillers of S or more behind them; a filler has no heirs.

    Raises ValueError if the shapes do not fit, for a `most` below 1, or if no row is kept.

    >>> import torch
    >>> attention = torch.tensor([[[0.1, 0.3, 0.6]]])
    >>> kept, evicted = torch.tensor([[[1, 2]]]), torch.tensor([[[0]]])
    >>> heirs(attention, torch.tensor([[[0.2, 0.0, 0.0]]]), kept, evicted, 2)
    Heirs(first=tensor([[[0]]], dtype=torch.int32), shares=tensor([[[0.5000]]]))
    """
    require(
        attention.shape == draws.shape
        and kept.shape[:2] == evicted.shape[:2] == attention.shape[:2],
        f"attention {tuple(attention.shape)}, draws {tuple(draws.shape)}, kept "
        f"{tuple(kept.shape)} and evicted {tuple(evicted.shape)} do not fit",
    )
    require(most >= 1, f"most must be at least 1, not {most}")
    require(kept.shape[2] >= 1, "at least one row must be kept")
    return implementation(heirs, attention, draws, kept, evicted)(
        attention, draws, kept, evicted, most
    )


def inherited_values(
    kept: Float[Tensor, "B N K Dv"],
    values: Float[Tensor, "B N S Dv"],
    evicted: Int[Tensor, "B N E"],
    first: Int[Tensor, "B N E"],
    shares: Float[Tensor, "B N E"],
    most: int,
) -> Float[Tensor, "B N K Dv"]:
    """Return the kept values with the share of each evicted value added to all of its heirs.

    `first` and `shares` are what `heirs` returned, with the same `most`. Sums are float64, or
    float32 on a device that has no float64, so that their order does not change them. The result
    has the dtype of the kept values.

    Raises ValueError if the shapes do not fit, or for a `most` below 1.

    >>> import torch
    >>> values, kept = torch.tensor([[[[8.0], [1.0], [2.0]]]]), torch.tensor([[[[1.0], [2.0]]]])
    >>> first, shares = torch.zeros(1, 1, 1, dtype=torch.int32), torch.full((1, 1, 1), 0.5)
    >>> inherited_values(kept, values, torch.tensor([[[0]]]), first, shares, 2).flatten()
    tensor([5., 6.])
    """
    require(
        kept.shape[:2] == values.shape[:2] == evicted.shape[:2]
        and kept.shape[3] == values.shape[3]
        and first.shape == shares.shape == evicted.shape,
        f"kept {tuple(kept.shape)}, values {tuple(values.shape)}, evicted {tuple(evicted.shape)}, "
        f"first {tuple(first.shape)} and shares {tuple(shares.shape)} do not fit",
    )
    require(most >= 1, f"most must be at least 1, not {most}")
    return implementation(inherited_values, kept, values, evicted, first, shares)(
        kept, values, evicted, first, shares, most
    )
