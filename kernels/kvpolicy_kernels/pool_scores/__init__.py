"""Pooling of scores over neighbouring positions."""

from __future__ import annotations

from typing import Literal

from jaxtyping import Float, Int
from torch import Tensor

from kvpolicy_kernels.backend import implementation
from kvpolicy_kernels.checks import require

__all__ = ["pool_scores"]


def pool_scores(
    scores: Float[Tensor, "B H S"],
    widths: Int[Tensor, "B H"] | int,
    shifts: Int[Tensor, "B H"] | int = 0,
    *,
    mode: Literal["avg", "max"] = "avg",
    edges: Literal["replicate", "zero"] = "replicate",
) -> Float[Tensor, "B H S"]:
    """Pool each head's scores over `widths` neighbouring positions, moved by `shifts`.

    out_j is the average (mode "avg") or maximum ("max") of scores_u over
    u = j - width // 2 + shift .. j + width // 2 + shift. A peak at p appears at p - shift. Widths
    and shifts are one int for all heads, or one for each.

    Beyond the first and last position, edges="replicate" repeats the nearest score. With
    edges="zero" such positions count as zeros in an average and are left out of a maximum, which
    is -inf if it has no position. The result has the dtype of the scores.

    Raises ValueError if the shapes do not fit, for an unknown mode or edges, and for a width that
    is even or below 1. A kernel does not check a tensor of widths, because that would wait for the
    GPU: it takes an even width as the next odd one, and a width below 1 as 1.

    >>> import torch
    >>> pool_scores(torch.tensor([[[0.0, 3.0, 0.0, 0.0, 6.0]]]), 3)
    tensor([[[1., 1., 1., 2., 4.]]])
    """
    require(mode in ("avg", "max"), f"mode must be 'avg' or 'max', not {mode!r}")
    require(edges in ("replicate", "zero"), f"edges must be 'replicate' or 'zero', not {edges!r}")
    for name, option in (("widths", widths), ("shifts", shifts)):
        require(
            isinstance(option, int) or option.shape == scores.shape[:2],
            f"{name} {tuple(getattr(option, 'shape', ()))} do not fit scores {tuple(scores.shape)}",
        )
    options = [option for option in (widths, shifts) if isinstance(option, Tensor)]
    return implementation(pool_scores, scores, *options)(
        scores, widths, shifts, mode=mode, edges=edges
    )
