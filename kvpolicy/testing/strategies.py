"""Hypothesis strategies for what the pipeline passes between its stages."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor

from kvpolicy.observation.observation import Observation
from kvpolicy.observation.rotary import PlainRotary
from kvpolicy.testing.samples import normal

SEEDS = st.integers(0, 2**16)


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
    """Draw one layer at the end of a prompt; if `grown`, or later, when positions are gone already.

    `window` is the scorer's: at most so many queries are shown; None shows all. `max_length`
    counts positions before the window. Attention ranges from uniform to one-hot, and heads may have
    learned sinks.
    """
    batch, heads, groups = (draw(st.integers(1, most)) for most in (2, 3, 3))
    dim, value_dim = draw(st.sampled_from([(1, 1), (4, 4), (8, 8), (8, 4)]))
    length = draw(st.integers(min_length, max_length + (window or 0)))
    shown = length if window is None else draw(st.integers(1, min(window, length)))
    seed, sharpness = draw(SEEDS), draw(st.sampled_from([1.0, 0.0, 30.0]))
    queries = normal(seed, batch, heads * groups, shown, dim) * sharpness
    num_layers = draw(st.integers(1, 4))
    sinks = normal(seed + 5, heads * groups)
    seen = length + (draw(st.sampled_from([0, 0, 1, 17])) if grown else 0)
    return Observation(
        queries=queries.to(dtype),
        keys=normal(seed + 1, batch, heads, length, dim).to(dtype),
        values=normal(seed + 2, batch, heads, length, value_dim).to(dtype),
        layer=draw(st.integers(0, num_layers - 1)),
        num_layers=num_layers,
        softcap=draw(st.sampled_from([None, 30.0])),
        sink_logits=draw(st.sampled_from([None, sinks, 10 * sinks])),
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
    """Draw grouped scores (B, N, S), with ties, negative values and protected positions (+inf)."""
    sizes = st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(1, max_length))
    batch, heads, length = shape or draw(sizes)
    seed, share = draw(SEEDS), draw(st.sampled_from([0.0, 0.1, 0.5]))
    drawn = normal(seed, batch, heads, length).mul(2).round().div(2)
    chance = torch.rand(drawn.shape, generator=torch.Generator().manual_seed(seed))
    return drawn.masked_fill(chance < share, torch.inf)


def _kept(seed: int, rows: tuple[int, int], length: int, seen: int, shown: int) -> Tensor:
    """Return `length` ascending positions of `seen` for each row; the window's are the last."""
    before = seen - shown
    order = torch.rand((*rows, before), generator=torch.Generator().manual_seed(seed)).argsort(-1)
    past = order[..., : length - shown].sort(-1).values
    return torch.cat([past, torch.arange(before, seen).expand(*rows, -1)], dim=-1)
