"""Spread scores over neighbouring positions."""

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
    """Average (or maximum) over `width` positions around each, moved by `shift`, per head.

    out_j reduces scores_u over u = j - width // 2 + shift .. j + width // 2 + shift. Positions
    outside the scores repeat the nearest score; with edges="zero" they count as zeros in an average
    and do not take part in a maximum (-inf if no position does). A peak at p appears at p - shift.

    The result has the dtype of the scores.

    Raises ValueError if a width is even or below 1; on a GPU, where asking a tensor of widths would
    synchronise, an even one counts as 1 more and one below 1 as 1.

    >>> import torch
    >>> pool_scores(torch.tensor([[[0.0, 3.0, 0.0, 0.0, 6.0]]]), 3)
    tensor([[[1., 1., 1., 2., 4.]]])
    """
    require(mode in ("avg", "max"), f"mode must be 'avg' or 'max': {mode!r}")
    require(edges in ("replicate", "zero"), f"edges must be 'replicate' or 'zero': {edges!r}")
    for name, option in (("widths", widths), ("shifts", shifts)):
        require(
            isinstance(option, int) or option.shape == scores.shape[:2],
            f"{name} {tuple(getattr(option, 'shape', ()))} do not fit scores {tuple(scores.shape)}",
        )
    options = [option for option in (widths, shifts) if isinstance(option, Tensor)]
    return implementation(pool_scores, scores, *options)(
        scores, widths, shifts, mode=mode, edges=edges
    )
