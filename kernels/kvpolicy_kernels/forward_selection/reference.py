"""Forward selection in PyTorch, in blocks of heads and queries, on every device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Bool, Float, Float32
from torch import Tensor

from kvpolicy_kernels.common.pytorch.blocks import LOGITS_BYTES, rows_per_block, spans
from kvpolicy_kernels.forward_selection.change import (
    Attention,
    error_and_gains,
    outputs_of,
)
from kvpolicy_kernels.forward_selection.queries import Queries
from kvpolicy_kernels.pool_scores import pool_scores
from kvpolicy_kernels.select import select

TABLES = 4
"""How many tables [B, n, G, m, S] would fill a block; one is held, and blocks of positions."""

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
        gains = errors(queries, keys, values, factors, kept, root=root)[1].float()
        if place == 0:
            step = STEP * gains.abs().amax(-1, keepdim=True)
        best = _mass(queries, keys) if place == 0 and by_mass else gains
        best = pool_scores(best, width) if width > 1 else best
        added = _best(best.masked_fill(kept, torch.inf), count) & ~kept
        # What is in a round comes before what is in none, or in a later one.
        gains = _below(bound, gains, added)
        scores = torch.where(added, gains, scores)
        least = gains.masked_fill(~added, torch.inf).amin(-1, keepdim=True)
        bound = torch.minimum(bound, least) - step
        kept = kept | added
    scores = torch.where(kept, scores, _below(bound, gains, ~kept))
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
    """Return the error of the set, and what each position takes from it."""
    dtype = _dtype(queries)
    now = keys.new_zeros(keys.shape[:2], dtype=dtype)
    gains = keys.new_zeros(keys.shape[:3], dtype=dtype)
    groups = queries.rows.shape[1] // keys.shape[1]
    grams = _grams(factors, keys.shape[1], groups, values, dtype)
    for n, m in _blocks(queries, keys):
        asked = queries.part(slice(n.start * groups, n.stop * groups), m)
        before, taken = error_and_gains(
            attention_of(asked, keys[:, n], dtype),
            values[:, n],
            grams[n],
            held[:, n],
            asked.weights.to(dtype),
            root=root,
        )
        now[:, n] += before
        gains[:, n] += taken
    return now, gains


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
        attention = attention_of(queries.part(h, m), keys[:, n], dtype)
        found[:, h, m] = outputs_of(attention, values[:, n]).flatten(1, 2)
    return found


def attention_of(queries: Queries, keys: Float[Tensor, "B n S D"], dtype: torch.dtype) -> Attention:
    """Return attention in `dtype`. Keys are read in blocks of positions."""
    rows = queries.rows.to(dtype).unflatten(1, (keys.shape[1], -1)) * queries.scaling
    logits = rows.new_empty(*rows.shape[:-1], keys.shape[2])
    for s in spans(0, keys.shape[2], rows_per_block(keys[:, :, 0].numel(), keys.device)):
        logits[..., s] = rows @ keys[:, :, None, s].to(dtype).mT
    if queries.softcap is not None:
        logits = logits.div_(queries.softcap).tanh_().mul_(queries.softcap)
    later = torch.arange(keys.shape[2], device=keys.device) >= queries.seen[:, None]
    logits = logits.masked_fill_(later, -torch.inf)
    column = None if queries.sinks is None else queries.sinks.to(logits)
    column = None if column is None else column.view(keys.shape[1], -1, 1, 1)
    base = logits.amax(-1, keepdim=True)
    base = base if column is None else torch.maximum(base, column)
    weights = logits.sub_(base).exp_()
    mass = weights.sum(-1, keepdim=True)
    if column is None:
        return Attention(weights.div_(mass), None)
    sink = (column - base).exp_()
    mass = mass + sink
    return Attention(weights.div_(mass), (sink / mass)[..., 0])


def _below(
    bound: Float32[Tensor, "B N 1"], gains: Float32[Tensor, "B N S"], some: Bool[Tensor, "B N S"]
) -> Float32[Tensor, "B N S"]:
    """Lower all gains of a head alike, until none of `some` is above the bound."""
    most = gains.masked_fill(~some, -torch.inf).amax(-1, keepdim=True)
    return gains - (most - bound).clamp_min(0)


def _mass(queries: Queries, keys: Float[Tensor, "B N S D"]) -> Float32[Tensor, "B N S"]:
    """Return the weighted attention of all queries of a group."""
    found = keys.new_zeros(keys.shape[:3], dtype=torch.float32)
    groups = queries.rows.shape[1] // keys.shape[1]
    for n, m in _blocks(queries, keys):
        asked = queries.part(slice(n.start * groups, n.stop * groups), m)
        attention = attention_of(asked, keys[:, n], torch.float32).weights
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
