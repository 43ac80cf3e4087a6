"""The window's attention to the past, read in blocks of query heads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import attrs
import torch
from jaxtyping import Float
from torch import Tensor

from kvpolicy.observation.fold import Reduce, is_maximum
from kvpolicy.observation.observation import Observation
from kvpolicy_kernels import largest_attention, pool_scores, rows_per_block, spans

LEAST = 1e-30


class Seen(NamedTuple):
    """What the window sees of the past, for each key/value head.

    `worst` is the folded maximum over the group's query heads, `mean` the mean over queries and
    heads, and `nearby` the mean share of the last W positions of the past.
    """

    worst: Float[Tensor, "B N P"]
    mean: Float[Tensor, "B N P"]
    nearby: Float[Tensor, "B N"]


def seen(observation: Observation, reduce: Reduce, width: int) -> Seen:
    """Return what the window sees; its attention [B, H, W, P] is never stored as a whole.

    >>> from kvpolicy.testing import observation
    >>> found = seen(observation(), lambda rows: rows.amax(-2), 5)
    >>> found.worst.shape, found.nearby.shape
    (torch.Size([1, 2, 24]), torch.Size([1, 2]))
    """
    past = observation.length - observation.window
    plain = observation.position_bias is None and not observation.ahead
    if plain and is_maximum(reduce):
        found = largest_attention(
            observation.queries,
            observation.keys,
            width,
            scaling=observation.scaling,
            softcap=observation.softcap,
            sinks=observation.sink_logits,
        )
        return Seen(*found, found.mean[..., -observation.window :].sum(-1))
    groups = observation.queries.shape[1] // observation.keys.shape[1]
    worst: list[Tensor] = []
    mean: list[Tensor] = []
    before = slice(0, 0)
    for heads, part in _parts(observation, groups):
        rows = part.attention[..., :past]
        by_head = (heads.stop - heads.start, -1)
        folded = reduce(_pooled(rows, width)).unflatten(1, by_head).amax(2)
        means = rows.mean(2).unflatten(1, by_head)
        share = means.shape[2] / groups
        if heads == before:
            # More query heads of the same key/value head.
            worst[-1] = worst[-1].maximum(folded)
            mean[-1] = mean[-1] + means.mean(2) * share
        else:
            worst.append(folded)
            mean.append(means.mean(2) * share if share < 1 else means.mean(2))
        before = heads
    means = _joined(mean)
    return Seen(_joined(worst), means, means[..., -observation.window :].sum(-1))


def _joined(of_heads: Sequence[Tensor]) -> Tensor:
    return of_heads[0] if len(of_heads) == 1 else torch.cat(list(of_heads), 1)


def _parts(observation: Observation, groups: int) -> Iterator[tuple[slice, Observation]]:
    """Yield some key/value heads and all their query heads, or one and some of its query heads."""
    rows = observation.queries.shape[0] * observation.window * observation.length
    # Of each query head there are the attention, its logits and its pooled form.
    layer = observation.keys.nbytes + observation.values.nbytes
    together = rows_per_block(3 * rows, observation.keys.device, layer=layer)
    for heads in spans(0, observation.keys.shape[1], max(1, together // groups)):
        first, last = heads.start * groups, heads.stop * groups
        for queries in spans(first, last, max(together, groups * (together // groups))):
            yield heads, _shown(observation, heads, queries)


def _shown(observation: Observation, heads: slice, queries: slice) -> Observation:
    """Return an observation of some heads, which shows nothing but their attention."""
    sinks, bias = observation.sink_logits, observation.position_bias
    return attrs.evolve(
        observation,
        queries=observation.queries[:, queries],
        keys=observation.keys[:, heads],
        values=observation.values[:, heads],
        positions=observation.positions[:, heads],
        sink_logits=None if sinks is None else sinks[queries],
        position_bias=None if bias is None else bias[:, queries],
        state=None,
    )


def _pooled(rows: Float[Tensor, "B h W P"], width: int) -> Float[Tensor, "B h W P"]:
    """Average over neighbours. The sum of each query's attention does not change."""
    pooled = pool_scores(rows.flatten(1, 2), width, edges="zero").view_as(rows)
    paid, left = (each.sum(-1, keepdim=True) for each in (rows, pooled))
    return pooled.mul_(paid / left.clamp_min(LEAST))
