"""Forward selection in PyTorch, in blocks of heads and queries, on every device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float32
from torch import Tensor

from kvpolicy_kernels.common.pytorch.blocks import LOGITS_BYTES, spans
from kvpolicy_kernels.forward_selection.change import error_with_each
from kvpolicy_kernels.forward_selection.queries import Queries
from kvpolicy_kernels.pool_scores import pool_scores
from kvpolicy_kernels.select import select

TABLES = 8
"""How many tables [B, n, G, m, S] a block of n heads and m queries has at once, about."""

STEP = 2.0**-20
"""By how much of the largest gain a round's scores are below those of the round before."""


@torch.no_grad()
def forward_selection(
    queries: Queries,
    keys: Float[Tensor, "B N S D"],
    values: Float[Tensor, "B N S Dv"],
    factors: Float[Tensor, "N R GDv"] | None,
    held: Bool[Tensor, "B N S"],
    counts: Sequence[int],
    *,
    by_mass: bool = False,
    root: bool = False,
    width: int = 1,
) -> Float32[Tensor, "B N S"]:
    """Add positions round by round, and note the gain with which each was added."""
    kept, scores = held, held.new_zeros(held.shape, dtype=torch.float32)
    bound = torch.full_like(scores[..., :1], torch.inf)
    for place, count in enumerate(counts):
        now, after = errors(queries, keys, values, factors, kept, root=root)
        gains = (now[..., None] - after).float()
        if place == 0:
            step = STEP * gains.abs().amax(-1, keepdim=True)
        best = _mass(queries, keys) if place == 0 and by_mass else gains
        best = pool_scores(best, width) if width > 1 else best
        added = _best(best.masked_fill(kept, torch.inf), count) & ~kept
        # What is in a round comes before what is in none, or in a later one.
        gains = torch.minimum(gains, bound)
        scores = torch.where(added, gains, scores)
        least = gains.masked_fill(~added, torch.inf).amin(-1, keepdim=True)
        bound = torch.minimum(bound, least) - step
        kept = kept | added
    scores = torch.where(kept, scores, torch.minimum(gains, bound))
    return scores.masked_fill(held, -torch.inf).where(~held, scores.amax(-1, keepdim=True) + step)


@torch.no_grad()
def set_error(
    queries: Queries,
    keys: Float[Tensor, "B N S D"],
    values: Float[Tensor, "B N S Dv"],
    factors: Float[Tensor, "N R GDv"] | None,
    held: Bool[Tensor, "B N S"],
    *,
    root: bool = False,
) -> Float[Tensor, "B N"]:
    """Return the error of the set."""
    return errors(queries, keys, values, factors, held, root=root)[0]


def errors(
    queries: Queries,
    keys: Float[Tensor, "B N S D"],
    values: Float[Tensor, "B N S Dv"],
    factors: Float[Tensor, "N R GDv"] | None,
    held: Bool[Tensor, "B N S"],
    *,
    root: bool,
) -> tuple[Float[Tensor, "B N"], Float[Tensor, "B N S"]]:
    """Return the error of the set, and with each position added to it."""
    dtype = _dtype(queries)
    now = keys.new_zeros(keys.shape[:2], dtype=dtype)
    after = keys.new_zeros(keys.shape[:3], dtype=dtype)
    groups = queries.rows.shape[1] // keys.shape[1]
    grams = _grams(factors, keys.shape[1], groups, values, dtype)
    for n, m in _blocks(queries, keys):
        asked = queries.part(slice(n.start * groups, n.stop * groups), m)
        attention, sink = attention_of(asked, keys[:, n].to(dtype))
        before, each = error_with_each(
            attention, sink, values[:, n].to(dtype), grams[n], held[:, n]
        )
        if root:
            before, each = before.sqrt(), each.sqrt_()
        weights = asked.weights.to(dtype)
        now[:, n] += torch.einsum("bm,bnm->bn", weights, before)
        after[:, n] += torch.einsum("bm,bnms->bns", weights, each)
    return now, after


@torch.no_grad()
def query_outputs(
    queries: Queries, keys: Float[Tensor, "B N S D"], values: Float[Tensor, "B N S Dv"]
) -> Float[Tensor, "B H M Dv"]:
    """Return each query's output."""
    dtype = _dtype(queries)
    batch, heads, count, _ = queries.rows.shape
    found = values.new_empty(batch, heads, count, values.shape[-1], dtype=dtype)
    groups = heads // keys.shape[1]
    for n, m in _blocks(queries, keys):
        h = slice(n.start * groups, n.stop * groups)
        attention = attention_of(queries.part(h, m), keys[:, n].to(dtype)).weights
        found[:, h, m] = (attention @ values[:, n, None].to(dtype)).flatten(1, 2)
    return found


class Attention(NamedTuple):
    """The attention of a block of queries, and that of the heads' learned sinks."""

    weights: Float[Tensor, "B n G m S"]
    sink: Float[Tensor, "B n G m"] | None


def attention_of(queries: Queries, keys: Float[Tensor, "B n S D"]) -> Attention:
    """Return attention in the dtype of `keys`."""
    rows = queries.rows.to(keys.dtype).unflatten(1, (keys.shape[1], -1)) * queries.scaling
    logits = torch.einsum("bngmd,bnsd->bngms", rows, keys)
    if queries.softcap is not None:
        logits = logits.div_(queries.softcap).tanh_().mul_(queries.softcap)
    later = torch.arange(keys.shape[2], device=keys.device) >= queries.seen[:, None]
    logits = logits.masked_fill_(later, -torch.inf)
    if queries.sinks is None:
        return Attention(logits.softmax(-1), None)
    column = queries.sinks.to(logits).view(keys.shape[1], -1, 1, 1)
    weights = torch.cat([logits, column.expand(*logits.shape[:-1], 1)], -1).softmax(-1)
    return Attention(weights[..., :-1], weights[..., -1])


def _mass(queries: Queries, keys: Float[Tensor, "B N S D"]) -> Float32[Tensor, "B N S"]:
    """Return the weighted attention of all queries of a group."""
    found = keys.new_zeros(keys.shape[:3], dtype=torch.float32)
    groups = queries.rows.shape[1] // keys.shape[1]
    for n, m in _blocks(queries, keys):
        asked = queries.part(slice(n.start * groups, n.stop * groups), m)
        attention = attention_of(asked, keys[:, n].float()).weights
        found[:, n] += torch.einsum("bm,bngms->bns", asked.weights.float(), attention)
    return found


def _dtype(queries: Queries) -> torch.dtype:
    return torch.float64 if queries.rows.dtype == torch.float64 else torch.float32


def _grams(
    factors: Float[Tensor, "N R GDv"] | None,
    kv_heads: int,
    groups: int,
    values: Float[Tensor, "B N S Dv"],
    dtype: torch.dtype,
) -> Float[Tensor, "N G Dv G Dv"]:
    """Return R_g^T R_h of each pair of a group's heads; identities in value space."""
    dim = values.shape[-1]
    if factors is None:
        one = torch.eye(groups * dim, dtype=dtype, device=values.device)
        return one.view(groups, dim, groups, dim).expand(kv_heads, -1, -1, -1, -1)
    wide = factors.to(dtype)
    return (wide.mT @ wide).view(kv_heads, groups, dim, groups, dim)


def _blocks(queries: Queries, keys: Float[Tensor, "B N S D"]) -> Iterator[tuple[slice, slice]]:
    """Yield heads and queries whose tables fit into a block."""
    batch, heads, count, _ = queries.rows.shape
    kv_heads, positions = keys.shape[1:3]
    floats = batch * heads // kv_heads * positions * TABLES
    room = max(1, LOGITS_BYTES // (4 * max(1, floats)))
    at_once = min(count, room)
    for n in spans(0, kv_heads, max(1, room // at_once)):
        for m in spans(0, count, at_once):
            yield n, m


def _best(scores: Float32[Tensor, "B N S"], count: int) -> Bool[Tensor, "B N S"]:
    """Mark the `count` best of each head; of equal scores the earlier ones."""
    budgets = torch.full(scores.shape[:2], count, dtype=torch.long, device="cpu")
    rows = select(scores, budgets, count=count) if count else None
    marked = torch.zeros_like(scores, dtype=torch.bool)
    return marked if rows is None else marked.scatter_(-1, rows, True)
