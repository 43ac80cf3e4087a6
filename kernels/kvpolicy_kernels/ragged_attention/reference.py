"""Attention over uneven heads in PyTorch: the specification, and the CPU path."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kvpolicy_kernels.common.pytorch.blocks import LOGITS_BYTES, rows_per_block, spans


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
    softcap: float | None = None,
    sinks: Float[Tensor, " H"] | None = None,
    padding: Int[Tensor, " B"] | None = None,
) -> Float[Tensor, "B H Q Dv"]:
    """Take a block of queries at a time: one softmax over the tail and every head's own rows."""
    batch, heads, count, _ = queries.shape
    sizes: list[int] = lengths.flatten().tolist()
    prefix = list(zip(prefix_keys.split(sizes), prefix_values.split(sizes), strict=True))
    columns = keys.shape[2] + max(sizes)
    # float32, or more where the model has more.
    precision = torch.promote_types(queries.dtype, torch.float32)
    result = values.new_empty(batch, heads, count, values.shape[-1])
    for q in spans(0, count, max(1, LOGITS_BYTES // (4 * batch * heads * columns))):
        seen = keys.shape[2] - count + q.stop
        block = queries[:, :, q].to(precision) * scaling
        tail = keys[:, :, :seen], values[:, :, :seen]
        result[:, :, q] = _attend(block, prefix, *tail, max(sizes), softcap, sinks, padding)
    return result


def _attend(
    queries: Float[Tensor, "B H Q D"],
    prefix: list[tuple[Float[Tensor, "_ D"], Float[Tensor, "_ Dv"]]],
    keys: Float[Tensor, "B N V D"],
    values: Float[Tensor, "B N V Dv"],
    longest: int,
    softcap: float | None,
    sinks: Float[Tensor, " H"] | None,
    padding: Int[Tensor, " B"] | None,
) -> Float[Tensor, "B H Q Dv"]:
    """Attend to prefix and tail, whose last positions are those of the queries."""
    batch, heads, count, dim = queries.shape
    kv_heads, tail = keys.shape[1:3]
    rows = queries.reshape(batch, kv_heads, -1, dim)
    # Columns that a head has no rows for are never written to, and weigh nothing. The last one is
    # the sink's.
    logits = rows.new_full((*rows.shape[:3], tail + longest + 1), -torch.inf)
    _multiply(rows, keys, logits[..., :tail], softcap)
    heads_of = zip(rows.flatten(0, 1), logits[..., tail:].flatten(0, 1), prefix, strict=True)
    for head, out, (own, _) in heads_of:
        _multiply(head, own, out, softcap)
    by_query = logits.view(batch, heads, count, -1)
    _hide(by_query[..., :tail], padding)
    if sinks is not None:
        by_query[..., -1] = sinks[:, None]
    weights = _softmax(logits, may_be_blind=padding is not None)
    output = rows.new_zeros(*rows.shape[:3], values.shape[-1])
    _accumulate(weights[..., :tail], values, output)
    heads_of = zip(weights[..., tail:].flatten(0, 1), output.flatten(0, 1), prefix, strict=True)
    for head, out, (_, own) in heads_of:
        _accumulate(head, own, out)
    return output.view(batch, heads, count, -1)


def _multiply(
    queries: Float[Tensor, "*heads r D"],
    keys: Float[Tensor, "*heads s D"],
    logits: Float[Tensor, "*heads r S"],
    softcap: float | None,
) -> None:
    """Fill the first columns of the logits, from keys that are converted on the way."""
    for s in spans(0, keys.shape[-2], rows_per_block(_row(keys), keys.device)):
        # Faster than queries times keys, with as few queries as decoding has.
        products = keys[..., s, :].to(queries.dtype) @ queries.mT
        if softcap is not None:
            products.div_(softcap).tanh_().mul_(softcap)
        logits[..., s] = products.mT


def _accumulate(
    weights: Float[Tensor, "*heads r S"],
    values: Float[Tensor, "*heads s Dv"],
    output: Float[Tensor, "*heads r Dv"],
) -> None:
    for s in spans(0, values.shape[-2], rows_per_block(_row(values), values.device)):
        output += weights[..., s] @ values[..., s, :].to(weights.dtype)


def _row(table: Float[Tensor, "*heads s D"]) -> int:
    """Count the numbers at one position of all heads."""
    return table[..., :1, :].numel()


def _hide(logits: Float[Tensor, "B H Q V"], padding: Int[Tensor, " B"] | None) -> None:
    """Hide from the queries, which are the last positions, what is later or padding."""
    count, visible = logits.shape[-2:]
    if count > 1:
        later = torch.ones(count, count, dtype=torch.bool, device=logits.device).triu_(1)
        logits[..., visible - count :].masked_fill_(later, -torch.inf)
    if padding is not None:
        slot = torch.arange(visible, device=logits.device)
        logits.masked_fill_((slot < padding[:, None])[:, None, None], -torch.inf)


def _softmax(logits: Float[Tensor, "*lead S"], *, may_be_blind: bool) -> Float[Tensor, "*lead S"]:
    """Normalise in place; where a query sees nothing, its weights are zeros instead of NaN."""
    if not may_be_blind:
        return torch.softmax(logits, -1, out=logits)
    blind = logits.amax(-1, keepdim=True).isneginf()
    return torch.softmax(logits, -1, out=logits).masked_fill_(blind, 0)
