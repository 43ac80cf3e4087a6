"""Scores of heads that hold protected positions: with them, without them, and before others."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad


def joined(of_heads: Sequence[Tensor], longest: int) -> Tensor:
    """Return what is said of all heads [b n S]; behind a shorter head nothing is (0, False)."""
    if len(of_heads) == 1 and of_heads[0].shape[-1] == longest:
        return of_heads[0]
    return torch.cat([pad(each, (0, longest - each.shape[-1])) for each in of_heads], 1)


def before_others(
    scores: Float[Tensor, "b n S"],
    protected: Bool[Tensor, "b n S"],
    lengths: Int[Tensor, "b n"],
) -> Float[Tensor, "b n S"]:
    """Return scores by which a head that keeps few positions loses none of a protected span.

    An allocator may give a head fewer positions than sinks, recent tokens and protected spans are
    together. All of them have the score +inf. There sinks and recent tokens get a finite one.
    """
    forced = scores.isposinf()
    few = forced.sum(-1) > lengths.to(scores.device, non_blocking=True)
    most = torch.finfo(scores.dtype).max
    return scores.masked_fill(forced & ~protected & few[..., None], most)


def without(
    scores: Float[Tensor, "b n S"], protected: Bool[Tensor, "b n S"], count: int
) -> Float[Tensor, "b n _"]:
    """Return the scores without those of `count` protected positions of each head, in order."""
    order = protected.to(torch.uint8).sort(dim=-1, stable=True).indices
    return scores.gather(-1, order[..., : scores.shape[-1] - count])
