"""The error of a set of positions, and what each other position takes from it: in closed form.

Let K be the set, M = sum_(i in K) a_i, O = sum_(i in K) a_i v_i / M, and o the whole output. Then

    d = O - o = sum_(i not in K) a_i (O - v_i)

which keeps its digits where K has nearly all attention. With position i added,

    d' = d + b_i (v_i - O),    b_i = a_i / (M + a_i)

The error is the norm of sum_g R_g d_g over the query heads g of a group. Its square is expanded by
the products R_g^T R_h, so that no vector is made for each pair of query and position.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from kvpolicy_kernels.common.pytorch.blocks import rows_per_block, spans


class Attention(NamedTuple):
    """The attention of a block of queries, and that of the heads' learned sinks."""

    weights: Float[Tensor, "B N G M S"]
    sink: Float[Tensor, "B N G M"] | None


def error_and_gains(
    attention: Attention,
    values: Float[Tensor, "B N S D"],
    grams: Float[Tensor, "N G D G D"],
    held: Bool[Tensor, "B N S"],
    weights: Float[Tensor, "B M"],
    *,
    root: bool,
) -> tuple[Float[Tensor, "B N"], Float[Tensor, "B N S"]]:
    """Return the error of the held set, and what each position takes from it; held ones nothing.

    Errors are squared, or their roots with `root`, and added up by the queries' weights. A learned
    sink is held by every head. Values are read twice, in blocks of positions. Gains are not the
    difference of two errors, in which small ones would be lost.
    """
    tiny = torch.finfo(weights.dtype).tiny
    mass, output, change = _of_set(attention, values, held)
    projected = torch.einsum("bngmd,ngdhe->bnhme", change, grams)
    now = (projected * change).sum((2, -1)).clamp_min(0)
    behind = (projected * output).sum(-1, keepdim=True)
    gains = attention.weights.new_empty(held.shape)
    for s in _blocks(attention, values):
        block = values[:, :, s].to(weights.dtype)
        share = attention.weights[..., s].masked_fill(held[:, :, None, None, s], 0)
        share = share.div_((share + mass[..., None]).clamp_min_(tiny))
        ahead = (projected @ block[:, :, None].mT).sub_(behind).mul_(share).sum(2)
        gain = ahead.mul_(-2).sub_(_squares(share, output, block, grams))
        gain = torch.minimum(gain, now[..., None])
        if root:
            gain = now.sqrt()[..., None] - (now[..., None] - gain).sqrt()
        gains[..., s] = torch.einsum("bm,bnms->bns", weights, gain)
    return torch.einsum("bm,bnm->bn", weights, now.sqrt() if root else now), gains


def outputs_of(
    attention: Attention, values: Float[Tensor, "B N S D"]
) -> Float[Tensor, "B N G M D"]:
    """Return sum_i a_i v_i of each query."""
    weights = attention.weights
    found = weights.new_zeros(*weights.shape[:-1], values.shape[-1])
    for s in _blocks(attention, values):
        found += weights[..., s] @ values[:, :, None, s].to(weights.dtype)
    return found


def _of_set(
    attention: Attention, values: Float[Tensor, "B N S D"], held: Bool[Tensor, "B N S"]
) -> tuple[Float[Tensor, "B N G M"], Float[Tensor, "B N G M D"], Float[Tensor, "B N G M D"]]:
    """Return M, O and d = O - o of the held set."""
    weights, sink = attention
    mass = weights.new_zeros(weights.shape[:-1]) if sink is None else sink.clone()
    lost = weights.new_zeros(weights.shape[:-1])
    output = weights.new_zeros(*mass.shape, values.shape[-1])
    missed = torch.zeros_like(output)
    for s in _blocks(attention, values):
        block = values[:, :, None, s].to(weights.dtype)
        missing = weights[..., s].masked_fill(held[:, :, None, None, s], 0)
        lost += missing.sum(-1)
        missed += missing @ block
        kept = missing.neg_().add_(weights[..., s])
        mass += kept.sum(-1)
        output += kept @ block
    output /= mass.clamp_min(torch.finfo(mass.dtype).tiny)[..., None]
    return mass, output, lost[..., None] * output - missed


def _blocks(attention: Attention, values: Float[Tensor, "B N S D"]) -> Iterator[slice]:
    batch, heads, groups, count, positions = attention.weights.shape
    floats = batch * heads * (3 * values.shape[-1] + count * (4 * groups + 5))
    return spans(0, positions, rows_per_block(floats, values.device))


def _squares(
    share: Float[Tensor, "B N G M S"],
    output: Float[Tensor, "B N G M D"],
    values: Float[Tensor, "B N S D"],
    grams: Float[Tensor, "N G D G D"],
) -> Float[Tensor, "B N M S"]:
    """Return || sum_g b_gi R_g (v_i - O_g) ||^2 for each query and position."""
    groups, found = share.shape[2], share.new_zeros(())
    for g in range(groups):
        for h in range(g, groups):
            gram = grams[:, g, :, h]
            own = ((values @ gram) * values).sum(-1)[:, :, None]
            left = output[:, :, g] @ gram
            right = output[:, :, h] @ gram.mT
            both = (left * output[:, :, h]).sum(-1, keepdim=True)
            product = own + both - (left + right) @ values.mT
            twice = 1 if g == h else 2
            found = found + twice * share[:, :, g] * share[:, :, h] * product
    return found
