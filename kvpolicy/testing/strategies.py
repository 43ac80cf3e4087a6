"""Hypothesis strategies for observations and scores, which the stages of a pipeline pass on."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor

from kvpolicy.observation.observation import Observation
from kvpolicy.observation.rotary import PlainRotary
from kvpolicy.testing.samples import normal

SEEDS = st.integers(0, 2**16)
# Made once: Hypothesis checks each strategy when it is first drawn from.
_SIZES = st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(1, 3))
_DIMS = st.sampled_from([(1, 1), (4, 4), (8, 8), (8, 4)])
_SHARPNESS = st.sampled_from([1.0, 0.0, 30.0])
_LAYERS = st.integers(1, 4)
_LAYER = st.integers(0, 3)
_EVICTED = st.sampled_from([0, 0, 1, 17])
_SOFTCAP = st.sampled_from([None, 30.0])
_SINKS = st.sampled_from([None, 1.0, 10.0])
_SHARE = st.sampled_from([0.0, 0.1, 0.5])


@st.composite
def observations(
    draw: st.DrawFn,
    *,
    window: int | None = 8,
    min_length: int = 1,
    max_length: int = 48,
    dtype: torch.dtype = torch.float32,
    grown: bool = True,
) -> Observation:
    """Draw one layer at the end of a prompt.

    With `grown` it may also be a later layer that has evicted positions. `window` is the scorer's:
    at most so many queries are shown; None shows all. `max_length` is the largest number of
    positions before the window. Attention ranges from uniform to one-hot. Heads may have learned
    sinks.
    """
    batch, heads, groups = draw(_SIZES)
    dim, value_dim = draw(_DIMS)
    length = draw(st.integers(min_length, max_length + (window or 0)))
    shown = length if window is None else draw(st.integers(1, min(window, length)))
    seed, sharpness, sinks = draw(SEEDS), draw(_SHARPNESS), draw(_SINKS)
    queries = normal(seed, batch, heads * groups, shown, dim) * sharpness
    num_layers = draw(_LAYERS)
    seen = length + (draw(_EVICTED) if grown else 0)
    return Observation(
        queries=queries.to(dtype),
        keys=normal(seed + 1, batch, heads, length, dim).to(dtype),
        values=normal(seed + 2, batch, heads, length, value_dim).to(dtype),
        layer=draw(_LAYER) % num_layers,
        num_layers=num_layers,
        softcap=draw(_SOFTCAP),
        sink_logits=None if sinks is None else sinks * normal(seed + 5, heads * groups),
        output_weight=normal(seed + 3, 16, heads * groups * value_dim).to(dtype),
        positions=_kept(seed + 4, (batch, heads), length, seen, shown),
        seen=seen,
        budget=draw(st.integers(1, length)),
        rotary=PlainRotary(dim=dim) if dim > 1 else None,
    )


@st.composite
def scores(
    draw: st.DrawFn, *, shape: tuple[int, int, int] | None = None, max_length: int = 48
) -> Tensor:
    """Draw scores [B N S] with ties, negative values and protected positions (+inf)."""
    sizes = st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(1, max_length))
    batch, heads, length = shape or draw(sizes)
    seed, share = draw(SEEDS), draw(_SHARE)
    drawn = normal(seed, batch, heads, length).mul(2).round().div(2)
    chance = torch.rand(drawn.shape, generator=torch.Generator().manual_seed(seed))
    return drawn.masked_fill(chance < share, torch.inf)


def _kept(seed: int, rows: tuple[int, int], length: int, seen: int, shown: int) -> Tensor:
    """Return for each row `length` ascending positions below `seen`; the window's come last."""
    before = seen - shown
    order = torch.rand((*rows, before), generator=torch.Generator().manual_seed(seed)).argsort(-1)
    past = order[..., : length - shown].sort(-1).values
    return torch.cat([past, torch.arange(before, seen).expand(*rows, -1)], dim=-1)
