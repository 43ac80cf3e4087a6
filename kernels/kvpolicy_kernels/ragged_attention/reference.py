"""Attention over uneven heads in PyTorch: the specification, and what runs on a CPU."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kvpolicy_kernels.common.pytorch.blocks import LOGITS_BYTES, rows_per_block, spans


@torch.no_grad()
def ragged_attention(
    queries: Float[Tensor, "B H Q D"],
    ragged_keys: Float[Tensor, "R D"],
    ragged_values: Float[Tensor, "R Dv"],
    lengths: Int[Tensor, "B N"],
    keys: Float[Tensor, "B N T D"],
    values: Float[Tensor, "B N T Dv"],
    *,
    scaling: float,
    softcap: float | None = None,
    sinks: Float[Tensor, " H"] | None = None,
    padding: Int[Tensor, " B"] | None = None,
    extra_keys: Float[Tensor, "B N D"] | None = None,
    extra_values: Float[Tensor, "B N Dv"] | None = None,
    extra_bias: Float[Tensor, "B N"] | None = None,
    ragged_bias: Float[Tensor, " R"] | None = None,
) -> Float[Tensor, "B H Q Dv"]:
    """Compute block by block of queries: one softmax over each head's ragged rows and the tail."""
    batch, heads, count, _ = queries.shape
    sizes: list[int] = lengths.flatten().tolist()
    ragged = list(zip(ragged_keys.split(sizes), ragged_values.split(sizes), strict=True))
    biases = None if ragged_bias is None else ragged_bias.split(sizes)
    columns = keys.shape[2] + max(sizes)
    # float32, or float64 if the queries are.
    precision = torch.promote_types(queries.dtype, torch.float32)
    extra = None
    if extra_keys is not None and extra_values is not None and extra_bias is not None:
        extra = extra_keys.to(precision), extra_values.to(precision), extra_bias.to(precision)
    result = values.new_empty(batch, heads, count, values.shape[-1])
    for q in spans(0, count, max(1, LOGITS_BYTES // (4 * batch * heads * columns))):
        seen = keys.shape[2] - count + q.stop
        block = queries[:, :, q].to(precision) * scaling
        tail = keys[:, :, :seen], values[:, :, :seen]
        result[:, :, q] = _attend(
            block, ragged, *tail, max(sizes), softcap, sinks, padding, extra, biases
        )
    return result


def _attend(
    queries: Float[Tensor, "B H Q D"],
    ragged: list[tuple[Float[Tensor, "_ D"], Float[Tensor, "_ Dv"]]],
    keys: Float[Tensor, "B N V D"],
    values: Float[Tensor, "B N V Dv"],
    longest: int,
    softcap: float | None,
    sinks: Float[Tensor, " H"] | None,
    padding: Int[Tensor, " B"] | None,
    extra: tuple[Tensor, Tensor, Tensor] | None,
    biases: Sequence[Float[Tensor, " _"]] | None,
) -> Float[Tensor, "B H Q Dv"]:
    """Attend to ragged rows and tail; the queries are those of the last positions of the tail.

    `extra` has the key, the value and the bias of each head's extra row, and `biases` those of each
    head's ragged rows.
    """
    batch, heads, count, dim = queries.shape
    kv_heads, tail = keys.shape[1:3]
    rows = queries.reshape(batch, kv_heads, -1, dim)
    # A head with fewer rows leaves columns at -inf, which weigh nothing. The last columns are for
    # the extra row, if there is one, and for the learned sink.
    last = tail + longest + (extra is not None)
    logits = rows.new_full((*rows.shape[:3], last + 1), -torch.inf)
    _multiply(rows, keys, logits[..., :tail], softcap)
    heads_of = zip(rows.flatten(0, 1), logits[..., tail:].flatten(0, 1), ragged, strict=True)
    for head, out, (own, _) in heads_of:
        _multiply(head, own, out, softcap)
    for out, bias in zip(logits[..., tail:].flatten(0, 1), biases or (), strict=bool(biases)):
        out[:, : len(bias)] += bias.to(out.dtype)
    if extra is not None:
        _multiply(rows, extra[0][:, :, None], logits[..., last - 1 : last], softcap)
        logits[..., last - 1] += extra[2][..., None]
    by_query = logits.view(batch, heads, count, -1)
    _hide(by_query[..., :tail], padding)
    if sinks is not None:
        by_query[..., -1] = sinks[:, None]
    weights = _softmax(logits, may_be_blind=padding is not None)
    output = rows.new_zeros(*rows.shape[:3], values.shape[-1])
    _accumulate(weights[..., :tail], values, output)
    heads_of = zip(weights[..., tail:].flatten(0, 1), output.flatten(0, 1), ragged, strict=True)
    for head, out, (_, own) in heads_of:
        _accumulate(head, own, out)
    if extra is not None:
        _accumulate(weights[..., last - 1 : last], extra[1][:, :, None], output)
    return output.view(batch, heads, count, -1)


def _multiply(
    queries: Float[Tensor, "*heads r D"],
    keys: Float[Tensor, "*heads s D"],
    logits: Float[Tensor, "*heads r S"],
    softcap: float | None,
) -> None:
    """Write the logits of the keys into the first columns; convert the keys block by block."""
    for s in spans(0, keys.shape[-2], rows_per_block(_row(keys), keys.device)):
        # With few queries, as in decoding, keys times queries is faster than queries times keys.
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
    """Return how many numbers one position of all heads has."""
    return table[..., :1, :].numel()


def _hide(logits: Float[Tensor, "B H Q V"], padding: Int[Tensor, " B"] | None) -> None:
    """Set the logits of padding and of later positions to -inf; the queries are the last ones."""
    count, visible = logits.shape[-2:]
    if count > 1:
        later = torch.ones(count, count, dtype=torch.bool, device=logits.device).triu_(1)
        logits[..., visible - count :].masked_fill_(later, -torch.inf)
    if padding is not None:
        slot = torch.arange(visible, device=logits.device)
        logits.masked_fill_((slot < padding[:, None])[:, None, None], -torch.inf)


def _softmax(logits: Float[Tensor, "*lead S"], *, may_be_blind: bool) -> Float[Tensor, "*lead S"]:
    """Compute the softmax in place; a query that sees nothing gets zeros instead of NaN."""
    if not may_be_blind:
        return torch.softmax(logits, -1, out=logits)
    blind = logits.amax(-1, keepdim=True).isneginf()
    return torch.softmax(logits, -1, out=logits).masked_fill_(blind, 0)
