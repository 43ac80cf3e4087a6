"""Replay: queries of a prompt's tokens, turned to the next position, instead of its last queries.

Attention to a token makes a model say what stands there. What it asks then, at the next position,
is nearly what that token has asked before: so a prompt's own queries stand in for those to come.
"""

from __future__ import annotations

from typing import NamedTuple

import attrs
import torch
from jaxtyping import Float, Int
from torch import Tensor

from kvpolicy.errors import UnsupportedModelError
from kvpolicy.observation.observation import Observation
from kvpolicy_kernels import rerotate_keys, select

OLD, NEW = slice(None, -1), slice(-1, None)


class Tokens(NamedTuple):
    """M tokens whose queries are shown, by their places among these, and the share of each."""

    places: Int[Tensor, "B M"]
    shares: Float[Tensor, "B M"]


def replayed(observation: Observation, places: Int[Tensor, "B M"]) -> Observation:
    """Show the queries at `places`, as they would be at the next position, in place of all shown.

    Rotary embedding is changed to that of position `seen`. The queries are `ahead`.

    >>> from kvpolicy.testing import observation
    >>> layer = observation(positions=9, window=9)
    >>> replayed(layer, torch.tensor([[2, 5]])).query_positions
    tensor([9, 9])

    Raises UnsupportedModelError if the model's rotary embedding is not known.
    """
    rotary, heads = observation.rotary, observation.queries.shape[1]
    if rotary is None:
        raise UnsupportedModelError(
            "queries cannot be turned to the next position, because the rotary embedding of this "
            "model is not known. Use a policy that does not replay queries."
        )
    channels = observation.queries.shape[-1]
    rows = places[:, None, :, None].expand(-1, heads, -1, channels)
    shown = observation.queries.gather(2, rows)
    if not observation.ahead:
        # One call of the model's rotary embedding for the old positions and the new one.
        positions = places + (observation.seen - observation.window)
        both = torch.nn.functional.pad(positions, (0, 1), value=observation.seen)
        cosines, sines = (table[:, None] for table in rotary.tables(both))
        old, new = ((cosines[:, :, part], sines[:, :, part]) for part in (OLD, NEW))
        shown = rerotate_keys(shown, old, new, interleaved=rotary.interleaved)
    return attrs.evolve(observation, queries=shown, ahead=True)


def most_attended(
    observation: Observation, scores: Float[Tensor, "B H S"], *, tokens: int, near: int
) -> Tokens | None:
    """Return those of the tokens whose queries are shown that have the largest scores.

    At most `tokens` are returned; none is the first of the text, or one of its last `near`. None
    if no other is shown. The share of a token is its squared score, the mean over all heads of the
    layer, as a part of the sum. All processes that share a layer must call this.

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
    of_layer = observation.of_all_heads(scores[..., held + first : held + stop]).mean(1)
    shares = (of_layer / _not_zero(of_layer.amax(-1, keepdim=True))).square()
    count = min(tokens, stop - first)
    budgets = torch.full((len(shares), 1), count, dtype=torch.long, device="cpu")
    places = select(shares[:, None], budgets, count=count)[:, 0]
    shares = shares.gather(-1, places)
    return Tokens(places + first, shares / _not_zero(shares.sum(-1, keepdim=True)))


def _not_zero(numbers: Float[Tensor, "B 1"]) -> Float[Tensor, "B 1"]:
    return numbers.clamp_min(torch.finfo(numbers.dtype).tiny)
