"""The window's attention in PyTorch: the specification, and what runs on a CPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from kvpolicy_kernels.common.pytorch.logits import are_single, exponentials, query_blocks


class WindowAttention(NamedTuple):
    """The summed attention, and the logsumexp of each query's logits, its learned sink included."""

    attention: Float32[Tensor, "B H S"]
    logsumexp: Float32[Tensor, "B H W"]


@torch.no_grad()
def window_attention(
    queries: Float[Tensor, "B H W D"],
    keys: Float[Tensor, "B N S D"],
    weights: Float[Tensor, " W"] | Float[Tensor, "B W"],
    *,
    scaling: float,
    softcap: float | None = None,
    sinks: Float[Tensor, " H"] | None = None,
    causal: bool = True,
) -> WindowAttention:
    """Add each block of softmax rows to the sum as soon as it is computed."""
    weights = weights.float().expand(len(queries), -1)
    blocks = query_blocks(
        queries, keys, scaling=scaling, softcap=softcap, together=True, causal=causal
    )
    if are_single(queries, keys):
        own = None if sinks is None else sinks[:, None]
        of_rows = [fold(each.logits, weights[each.batch], own) for each in blocks]
        return WindowAttention(*map(_stacked, zip(*of_rows, strict=True)))
    attention = weights.new_zeros(*queries.shape[:2], keys.shape[2])
    logsumexp = weights.new_empty(queries.shape[:3])
    for b, _, h, w, logits in blocks:
        own = None if sinks is None else sinks[h, None]
        folded, logsumexp[b, h, w] = fold(logits, weights[b, w], own)
        attention[b, h, : logits.shape[-1]] += folded
    return WindowAttention(attention, logsumexp)


def fold(
    logits: Float32[Tensor, "h w V"],
    weights: Float32[Tensor, " w"],
    sinks: Float[Tensor, "h 1"] | None,
) -> tuple[Float32[Tensor, "h V"], Float32[Tensor, "h w"]]:
    """Return the softmax of the rows, summed by `weights`, and their logsumexp.

    Overwrites `logits`.
    """
    base, mass = exponentials(logits, sinks)
    share = weights / mass
    summed = logits[:, 0].mul_(share) if len(weights) == 1 else (share[:, None] @ logits)[:, 0]
    return summed, base + mass.log()


def _stacked(of_rows: Sequence[Tensor]) -> Tensor:
    """Return a batch of sequences; one is not copied."""
    return of_rows[0][None] if len(of_rows) == 1 else torch.stack(list(of_rows))
