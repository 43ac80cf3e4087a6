"""The error of a set of positions, and with each other position added to it: in closed form.

Let K be the set, M = sum_(i in K) a_i, O = sum_(i in K) a_i v_i / M, and o the whole output. Then

    d = O - o = sum_(i not in K) a_i (O - v_i)

which keeps its digits where K has nearly all attention. With position i added,

    d' = d + b_i (v_i - O),    b_i = a_i / (M + a_i)

The error is the norm of sum_g R_g d_g over the query heads g of a group. Its square is expanded by
the products R_g^T R_h, so that no vector is made for each pair of query and position.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def error_with_each(
    attention: Float[Tensor, "B N G M S"],
    sink: Float[Tensor, "B N G M"] | None,
    values: Float[Tensor, "B N S D"],
    grams: Float[Tensor, "N G D G D"],
    held: Bool[Tensor, "B N S"],
) -> tuple[Float[Tensor, "B N M"], Float[Tensor, "B N M S"]]:
    """Return the squared error of the held set, and with each position; held ones change nothing.

    A learned sink is held by every head.
    """
    tiny = torch.finfo(attention.dtype).tiny
    missing = attention.masked_fill(held[:, :, None, None], 0)
    kept = attention - missing
    mass = kept.sum(-1) if sink is None else kept.sum(-1) + sink
    output = (kept @ values[:, :, None]) / mass.clamp_min(tiny)[..., None]
    del kept
    change = missing.sum(-1, keepdim=True) * output - missing @ values[:, :, None]
    total = missing.add(mass[..., None]).clamp_min_(tiny)
    share = missing.div_(total)
    projected = torch.einsum("bngmd,ngdhe->bnhme", change, grams)
    now = (projected * change).sum((2, -1)).clamp_min(0)
    ahead = projected @ values[:, :, None].mT - (projected * output).sum(-1, keepdim=True)
    after = now[..., None] + 2 * (share * ahead).sum(2)
    del ahead
    after += _squares(share, output, values, grams)
    return now, after.clamp_min_(0)


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
