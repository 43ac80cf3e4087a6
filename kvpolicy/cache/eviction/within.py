"""Counts for an error target: as few positions of each head as keep a layer's error within it.

One tolerance holds for all heads of a layer. A head keeps as few positions, the best by score, as
change the layer's output by at most the tolerance. The tolerance is the largest of `TOLERANCES`
with which all heads together change it by at most the target. With N heads the smallest tolerance,
the target / N, always does, by the triangle inequality.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import attrs
import torch
from jaxtyping import Float, Int
from torch import Tensor

from kvpolicy.budget import Within, positions_of
from kvpolicy.cache.eviction.views import View
from kvpolicy.observation.observation import Observation
from kvpolicy.observation.removal import Removal, projected, removal
from kvpolicy.observation.shard import Shard

STEPS = 8
"""Tolerances between a value and its half."""

LEAST = torch.finfo(torch.float32).tiny


@attrs.frozen(kw_only=True, eq=False)
class _Heads:
    """Heads that are shown together: what each count changes, and how many must stay."""

    observation: Observation
    removal: Removal
    settled: int


def counts_within(
    target: Within,
    shown: Sequence[tuple[View, Observation, Float[Tensor, "b _ _"]]],
    *,
    protected: int,
    shard: Shard | None,
) -> Int[Tensor, "b N"]:
    """Return how many of the competing positions each head of the layer keeps, on the CPU.

    `shown` has the views of the layer, which together have all heads of this process, each with an
    observation of the target's window and the scores of its positions.
    """
    heads = [_shown(*each, protected=protected) for each in shown]
    parts = _exchanged([each.removal.output for each in heads], shard)
    size = torch.linalg.vector_norm(torch.stack(parts).sum(0), dim=-1).clamp_min(LEAST)
    envelopes = [_envelope(each.removal.errors, size) for each in heads]
    kv_heads = len(parts) * sum(each.shape[1] for each in envelopes)
    tolerances = _tolerances(target.error, kv_heads, size)
    chosen = [_first_within(each, tolerances) for each in envelopes]
    changes = [_changes(*each) for each in zip(heads, chosen, strict=True)]
    change = torch.stack(_exchanged(changes, shard)).sum(0)
    joint = torch.linalg.vector_norm(change, dim=-1).div(size).mean(-1)
    holds = joint <= target.error
    holds[-1] = True
    best = holds.int().argmax(0)
    cap = positions_of(target, shown[0][0].newest, protected=protected)
    counts = [_counts(*each, best, cap) for each in zip(heads, chosen, strict=True)]
    own = torch.cat(counts, 1)
    return own.cpu() if shard is None else torch.cat(list(shard.exchange(own)), 1).cpu()


def _shown(
    view: View, observation: Observation, scores: Float[Tensor, "b n S"], *, protected: int
) -> _Heads:
    """Measure the counts of a view; what earlier turns kept stays before all others."""
    settled = max(0, observation.length - view.newest)
    if settled:
        earlier = torch.full_like(scores[..., :settled], torch.inf)
        scores = torch.cat([earlier, scores[..., settled:]], -1)
    return _Heads(
        observation=observation,
        removal=removal(observation, scores, settled + max(1, protected)),
        settled=settled,
    )


def _envelope(
    errors: Float[Tensor, "b n C W"], size: Float[Tensor, "b W"]
) -> Float[Tensor, "b n C"]:
    """Return for each count the largest error of it and all larger ones, as a share."""
    shares = (errors / size[:, None, None]).mean(-1)
    return shares.flip(-1).cummax(-1).values.flip(-1)


def _tolerances(error: float, heads: int, like: Tensor) -> Float[Tensor, " T"]:
    """Return tolerances from `error` down to its part for each head."""
    halvings = math.log2(heads)
    count = 1 + math.ceil(STEPS * halvings)
    steps = torch.linspace(0, halvings, count, device=like.device, dtype=torch.float32)
    return error * torch.exp2(-steps)


def _first_within(
    envelope: Float[Tensor, "b n C"], tolerances: Float[Tensor, " T"]
) -> Int[Tensor, "T b n"]:
    """Return the place of the smallest count that keeps to each tolerance."""
    above = envelope > tolerances[:, None, None, None]
    return above.sum(-1).clamp_max(envelope.shape[-1] - 1)


def _changes(heads: _Heads, chosen: Int[Tensor, "T b n"]) -> Float[Tensor, "T b W M"]:
    """Return how the heads together change the layer's output, with each tolerance."""
    tolerances, batch, kv_heads = chosen.shape
    by_head = heads.removal.changes.unflatten(1, (kv_heads, -1)).transpose(2, 3).flatten(0, 1)
    rows = torch.arange(batch * kv_heads, device=chosen.device)
    found = by_head[rows, chosen.flatten(1)]
    return projected(heads.observation, found.view(tolerances, batch, -1, *found.shape[-2:]))


def _counts(
    heads: _Heads, chosen: Int[Tensor, "T b n"], best: Int[Tensor, " b"], cap: int
) -> Int[Tensor, "b n"]:
    """Return the competing positions of each head with the best tolerance of each row."""
    places = chosen.gather(0, best[None, :, None].expand(1, *chosen.shape[1:]))[0]
    return (heads.removal.counts[places] - heads.settled).clamp_max(cap)


def _exchanged(parts: Sequence[Tensor], shard: Shard | None) -> list[Tensor]:
    """Return for each process the sum over its heads."""
    summed = torch.stack(list(parts)).sum(0)
    return [summed] if shard is None else list(shard.exchange(summed))
