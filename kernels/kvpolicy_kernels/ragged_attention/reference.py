"""Attention over uneven heads in PyTorch: the specification, and the CPU path."""

from __future__ import annotations

from itertools import product
from typing import NamedTuple

import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor

from kvpolicy_kernels.chunking import LOGITS_BYTES, spans


class Part(NamedTuple):
    """Attention over some of the positions: its output, and the log-sum-exp of its logits."""

    output: Float32[Tensor, "B H Q Dv"]
    logsumexp: Float32[Tensor, "B H Q"]


@torch.no_grad()
def ragged_attention(
    queries: Float[Tensor, "B H Q D"],
    prefix_keys: Float[Tensor, "R D"],
    prefix_values: Float[Tensor, "R Dv"],
    lengths: Int[Tensor, "B N"],
    keys: Float[Tensor, "B N T D"],
    values: Float[Tensor, "B N T Dv"],
    *,
    scaling: float,
    softcap: float | None,
    padding: Int[Tensor, " B"] | None,
) -> Float[Tensor, "B H Q Dv"]:
    """Attend to prefix and tail for a block of queries at a time, and merge the two."""
    batch, heads, count, _ = queries.shape
    longest = max(int(lengths.max()), keys.shape[2])
    step = max(1, LOGITS_BYTES // (4 * batch * heads * longest))
    result = values.new_empty(batch, heads, count, values.shape[-1])
    for q in spans(0, count, step):
        block = queries[:, :, q].float() * scaling
        prefix = _prefix(block, prefix_keys, prefix_values, lengths, softcap)
        visible = keys.shape[2] - count + q.stop
        tail = _tail(block, keys[:, :, :visible], values[:, :, :visible], softcap, padding)
        result[:, :, q] = _merged(prefix, tail)
    return result


def _prefix(
    queries: Float32[Tensor, "B H Q D"],
    keys: Float[Tensor, "R D"],
    values: Float[Tensor, "R Dv"],
    lengths: Int[Tensor, "B N"],
    softcap: float | None,
) -> Part:
    """Attend to every head's own rows; all queries see all of them."""
    batch, heads, count, dim = queries.shape
    group = heads // lengths.shape[1]
    output = queries.new_zeros(batch, heads, count, values.shape[-1])
    logsumexp = queries.new_full((batch, heads, count), -torch.inf)
    first = 0
    for (b, n), length in zip(
        product(*map(range, lengths.shape)), lengths.flatten().tolist(), strict=True
    ):
        rows, h = slice(first, first + length), slice(n * group, (n + 1) * group)
        first += length
        if length:
            folded = queries[b, h].reshape(-1, dim)
            logits = _capped(folded @ keys[rows].float().T, softcap)
            total = logits.logsumexp(-1)
            weighted = logits.sub_(total[:, None]).exp_() @ values[rows].float()
            output[b, h] = weighted.view(group, count, -1)
            logsumexp[b, h] = total.view(group, count)
    return Part(output, logsumexp)


def _tail(
    queries: Float32[Tensor, "B H Q D"],
    keys: Float[Tensor, "B N V D"],
    values: Float[Tensor, "B N V Dv"],
    softcap: float | None,
    padding: Int[Tensor, " B"] | None,
) -> Part:
    """Attend to the shared tail; its last positions are those of the queries."""
    batch, heads, count, dim = queries.shape
    kv_heads, visible = keys.shape[1:3]
    folded = queries.reshape(batch, kv_heads, -1, dim)
    logits = _capped(folded @ keys.float().mT, softcap).view(batch, heads, count, visible)
    if count > 1:
        later = torch.ones(count, count, dtype=torch.bool, device=keys.device).triu_(1)
        logits[..., visible - count :].masked_fill_(later, -torch.inf)
    if padding is not None:
        slot = torch.arange(visible, device=keys.device)
        logits.masked_fill_((slot < padding[:, None])[:, None, None], -torch.inf)
    total = logits.logsumexp(-1)
    weights = logits.sub_(_finite(total)[..., None]).exp_().view(batch, kv_heads, -1, visible)
    output = (weights @ values.float()).view(batch, heads, count, -1)
    return Part(output, total)


def _merged(first: Part, second: Part) -> Float32[Tensor, "B H Q Dv"]:
    total = _finite(torch.logaddexp(first.logsumexp, second.logsumexp))
    shares = ((part.logsumexp - total).exp_()[..., None] * part.output for part in (first, second))
    return next(shares).add_(next(shares))


def _capped(logits: Float32[Tensor, "*shape"], softcap: float | None) -> Float32[Tensor, "*shape"]:
    return logits if softcap is None else logits.div_(softcap).tanh_().mul_(softcap)


def _finite(total: Float32[Tensor, "*shape"]) -> Float32[Tensor, "*shape"]:
    """Where a query sees nothing, let its weights come out as zeros instead of NaN."""
    return total.masked_fill(total.isneginf(), 0)
