"""The queries by which sets are judged: the last ones, and replays of what attention leads to."""

from __future__ import annotations

import attrs
import torch
from jaxtyping import Float
from torch import Tensor

from kvpolicy.observation.fold import Fold, Reduce, weights_of
from kvpolicy.observation.observation import Observation
from kvpolicy.observation.outputs import output_sizes
from kvpolicy.observation.replay import most_attended, replayed
from kvpolicy_kernels import Queries


def asked(
    row: Observation, reduce: Reduce, *, last: int, hops: int, tokens: int, near: int
) -> Queries:
    """Return the last queries and those of each replay, each weighted by w_m / ||y_m||^2.

    >>> from kvpolicy.testing import observation
    >>> layer = observation(positions=12, window=12)
    >>> given = asked(layer, lambda rows: rows.mean(-2), last=2, hops=3, tokens=5, near=4)
    >>> given.rows.shape, given.seen.tolist()[:3]
    (torch.Size([1, 4, 17, 8]), [11, 12, 12])

    `row` shows one sequence. All processes that share a layer must call this.
    """
    window, device = min(last, row.window), row.keys.device
    shown = attrs.evolve(row, queries=row.queries[:, :, row.window - window :])
    weights = weights_of(reduce, window, device)
    if weights is None:
        weights = torch.full((window,), 1 / window, dtype=torch.float32, device=device)
    parts, shares = [shown.queries], [weights]
    for _ in range(hops):
        attention = shown.folded_attention(_weighted_by(shares[-1]))
        chosen = most_attended(row, attention, tokens=tokens, near=near)
        if chosen is None:
            break
        shown = replayed(row, chosen.places)
        parts.append(shown.queries)
        shares.append(chosen.shares[0])
    replays = sum(each.shape[2] for each in parts) - window
    own = torch.arange(row.length - window + 1, row.length + 1, device=device)
    queries = Queries(
        rows=torch.cat(parts, 2),
        weights=torch.cat(shares)[None],
        seen=torch.cat([own, own.new_full((replays,), row.length)]),
        scaling=row.scaling,
        softcap=row.softcap,
        sinks=row.sink_logits,
    )
    sizes = output_sizes(row, queries, row.keys, row.values)
    return queries._replace(weights=queries.weights / sizes.square())


def _weighted_by(shares: Float[Tensor, " M"]) -> Fold:
    """Return the fold that adds up queries by their shares."""
    return Fold(lambda values: shares.to(values) @ values, lambda window: shares)
