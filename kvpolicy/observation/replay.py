"""Replay: queries of a prompt's tokens, turned to next positions, instead of its last queries.

Attention to a token makes a model say what stands there. What it asks then, at the next position,
is nearly what that token has asked before: so a prompt's own queries stand in for those to come.
`replayed` turns them all to the next position, `continued` each to its own.
"""

from __future__ import annotations

import attrs
import torch
from jaxtyping import Float, Int
from torch import Tensor

from kvpolicy.errors import UnsupportedModelError
from kvpolicy.observation.observation import Observation
from kvpolicy_kernels import TokenShares, rerotate_keys, token_shares

MOST_HOPS = 32
"""How often queries may be replayed at most: each time takes as long as the first scores."""


def replayed(observation: Observation, places: Int[Tensor, "B M"]) -> Observation:
    """Show the queries at `places`, as they would be at the next position, in place of all shown.

    Rotary embedding is changed to that of position `seen`. The queries are `ahead`.

    >>> from kvpolicy.testing import observation
    >>> layer = observation(positions=9, window=9)
    >>> replayed(layer, torch.tensor([[2, 5]])).query_positions
    tensor([9, 9])

    Raises UnsupportedModelError if the model's rotary embedding is not known.
    """
    turns = torch.nn.functional.pad(places, (0, 1), value=observation.window)
    return attrs.evolve(observation, queries=_turned(observation, turns, 1), ahead=True)


def continued(observation: Observation, places: Int[Tensor, "B M"]) -> Observation:
    """Show the queries at `places` as if their tokens came next, one after another.

    Rotary embedding is changed to that of positions `seen`, `seen` + 1 ... `seen` + M - 1, in the
    order of `places`. The queries are `ahead` and `consecutive`.

    >>> from kvpolicy.testing import observation
    >>> layer = observation(positions=9, window=9)
    >>> continued(layer, torch.tensor([[2, 5]])).query_positions
    tensor([ 9, 10])

    Raises UnsupportedModelError if the model's rotary embedding is not known.
    """
    window, tokens = observation.window, places.shape[1]
    new = torch.arange(window, window + tokens, device=places.device)
    turns = torch.cat([places, new.expand(places.shape)], 1)
    shown = _turned(observation, turns, tokens)
    return attrs.evolve(observation, queries=shown, ahead=True, consecutive=True)


def _turned(
    observation: Observation, turns: Int[Tensor, "B places"], new: int
) -> Float[Tensor, "B H M D"]:
    """Return the queries at M places, turned to other places.

    `turns` has the M places, and then `new` others: M, or one for all. Place W is that of the next
    token. Both are rows of one table, since a call of the model's rotary embedding is not cheap.
    """
    rotary = observation.rotary
    if rotary is None:
        raise UnsupportedModelError(
            "queries cannot be turned to the next position, because the rotary embedding of this "
            "model is not known. Use a policy that does not replay queries."
        )
    places = turns[:, :-new]
    if observation.ahead:
        _, heads, _, channels = observation.queries.shape
        rows = places[:, None, :, None].expand(-1, heads, -1, channels)
        return observation.queries.gather(2, rows)
    earlier = observation.seen - observation.window
    positions = turns + earlier if earlier else turns
    cosines, sines = (table[:, None] for table in rotary.tables(positions))
    before, after = (
        (cosines[:, :, part], sines[:, :, part]) for part in (slice(-new), slice(-new, None))
    )
    return rerotate_keys(
        observation.queries, before, after, interleaved=rotary.interleaved, rows=places
    )


def most_attended(
    observation: Observation, scores: Float[Tensor, "B H S"], *, tokens: int, near: int
) -> TokenShares | None:
    """Return those of the tokens whose queries are shown that have the largest scores.

    Places are counted from the first query that is shown. At most `tokens` are returned; none is
    the first of the text, or one of its last `near`. None if no other is shown. The share of a
    token is its squared score, the mean over all heads of the layer, as a part of the sum. All
    processes that share a layer must call this.

    >>> from kvpolicy.testing import observation
    >>> layer = observation(positions=4, window=4)
    >>> scores = torch.tensor([9.0, 1.0, 2.0, 9.0]).expand(1, 4, 4)
    >>> most_attended(layer, scores, tokens=2, near=1).shares
    tensor([[0.2000, 0.8000]])
    """
    earlier = observation.seen - observation.window
    first, stop = max(0, 1 - earlier), observation.window - near
    if stop <= first:
        return None
    held = observation.length - observation.window
    of_layer = observation.of_all_heads(scores[..., held : held + stop])
    return token_shares(of_layer, min(tokens, stop - first), first=first)
