"""The change of outputs in PyTorch: the specification, and what runs on a CPU."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from kvpolicy_kernels.common.pytorch.blocks import rows_per_block, spans
from kvpolicy_kernels.common.pytorch.logits import exponentials, query_blocks


@torch.no_grad()
def output_change(
    queries: Float[Tensor, "B H W D"],
    keys: Float[Tensor, "B N S D"],
    values: Float[Tensor, "B N S Dv"],
    weights: Float[Tensor, " W"] | Float[Tensor, "B W"],
    zeroed: Literal["joint", "key", "value"] = "joint",
    *,
    scaling: float,
    softcap: float | None = None,
    sinks: Float[Tensor, " H"] | None = None,
    causal: bool = True,
) -> Float32[Tensor, "B H S"]:
    """Compute the attention of some queries; read the values once for o, once for the changes."""
    changes = weights.new_zeros(*queries.shape[:2], keys.shape[2], dtype=torch.float32)
    weights = weights.float().expand(len(queries), -1)
    blocks = query_blocks(queries, keys, scaling=scaling, softcap=softcap, causal=causal)
    for b, n, h, w, logits in blocks:
        base, mass = exponentials(logits, None if sinks is None else sinks[h, None])
        attention, seen = logits.div_(mass[..., None]), values[b, n, : logits.shape[-1]]
        rows = attention.shape[0] * attention.shape[1]
        steps = list(spans(0, len(seen), rows_per_block(6 * rows + seen.shape[1], seen.device)))
        if zeroed == "value":
            for s in steps:
                squares = seen[s].float().square().sum(-1)
                changes[b, h, s] += (weights[b, w] @ attention[..., s].square()) * squares
            continue
        outputs = attention.new_zeros(*attention.shape[:2], seen.shape[1])
        for s in steps:
            outputs += attention[..., s] @ seen[s].float()
        logsumexp = base + mass.log()
        for s in steps:
            squared = _changes(attention[..., s], logsumexp, seen[s].float(), outputs, zeroed)
            changes[b, h, s] += weights[b, w] @ squared
    return changes


def _changes(
    attention: Float32[Tensor, "h w s"],
    logsumexp: Float32[Tensor, "h w"],
    values: Float32[Tensor, "s Dv"],
    outputs: Float32[Tensor, "h w Dv"],
    zeroed: Literal["joint", "key", "value"],
) -> Float32[Tensor, "h w s"]:
    """Return a^2 ||l (v - o)||^2, or a^2 ||v + l (v - o)||^2."""
    # a l, where l = log(a) + logsumexp; 0 where a is 0.
    weighted = torch.xlogy(attention, attention).addcmul_(attention, logsumexp[..., None])
    # Not by matrix products: o . o - 2 o . v + v . v loses all digits of a value close to o.
    rows = values.expand(len(outputs), -1, -1)
    apart = torch.cdist(outputs, rows, compute_mode="donot_use_mm_for_euclid_dist").square_()
    of_key = weighted.square() * apart
    if zeroed == "key":
        return of_key
    squares = values.square().sum(-1)
    # 2 v . (v - o) = v . v + (v - o) . (v - o) - o . o
    twice = apart.add_(squares).sub_(outputs.square().sum(-1, keepdim=True))
    of_both = of_key.addcmul_(weighted.mul_(attention), twice)
    return of_both.addcmul_(attention.square(), squares).clamp_min_(0.0)
