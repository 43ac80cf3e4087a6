"""What every smoother promises."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor

from kvpolicy.observation.observation import Observation
from kvpolicy.pipeline.capabilities import across_heads
from kvpolicy.stages.smoothing import LinearSmoother, Smoother
from kvpolicy.testing.promises.inputs import unchanged
from kvpolicy.testing.promises.promise import Draw, promise
from kvpolicy.testing.samples import normal
from kvpolicy.testing.samples import observation as sample
from kvpolicy.testing.shards import in_shards
from kvpolicy.testing.strategies import SEEDS, observations

LEVELS = st.floats(-4, 4, width=32)


@promise("smoother")
def folds_what_agrees_to_itself(smoother: Smoother, draw: Draw) -> None:
    """Queries that all say the same fold to just that."""
    values = _window(draw)
    row = values[..., :1, :]
    folded = smoother.temporal(row.expand_as(values))
    torch.testing.assert_close(folded, row.squeeze(-2), rtol=1e-4, atol=1e-5)


@promise("smoother")
def folds_with_its_weights(smoother: Smoother, draw: Draw) -> None:
    """The weights of a linear smoother sum to 1, and are those of `temporal`."""
    if not isinstance(smoother, LinearSmoother):
        return
    values = _window(draw)
    weights = smoother.weights(values.shape[-2]).float()
    assert weights.shape == (values.shape[-2],)
    torch.testing.assert_close(weights.sum(), torch.tensor(1.0), rtol=0, atol=1e-5)
    weighted = torch.einsum("...ws,w->...s", values, weights)
    torch.testing.assert_close(smoother.temporal(values), weighted, rtol=1e-4, atol=1e-5)


@promise("smoother")
def folds_by_the_maximum_it_names(smoother: Smoother, draw: Draw) -> None:
    """A smoother with `folds_by_maximum` takes the maximum over the queries."""
    if getattr(smoother, "folds_by_maximum", False):
        values = _window(draw)
        torch.testing.assert_close(smoother.temporal(values), values.amax(-2), rtol=0, atol=0)


@promise("smoother")
def keeps_the_shape(smoother: Smoother, draw: Draw) -> None:
    """Spreading gives one finite float32 score for each that it was given."""
    observation = draw(observations())
    scores = _scores(observation, draw)
    spread = smoother.spatial(scores, observation)
    assert spread.shape == scores.shape
    assert spread.dtype == torch.float32
    assert spread.isfinite().all(), "scores must be finite"


@promise("smoother")
def keeps_constants_away_from_the_edges(smoother: Smoother, draw: Draw) -> None:
    """What is smooth already stays as it is.

    Only where a position has all its neighbours: pooling that counts zeros beyond an edge, as
    SnapKV's does, makes constants smaller there. Nothing makes them larger.
    """
    length, window, level = 256, draw(st.integers(1, 8)), draw(LEVELS)
    observation = sample(positions=length + window, window=window, seed=draw(SEEDS))
    flat = torch.full((1, 4, length + window), level)
    spread = smoother.spatial(flat, observation)
    inside = slice(length // 3, 2 * length // 3)
    torch.testing.assert_close(spread[..., inside], flat[..., inside], rtol=1e-4, atol=1e-5)
    assert (spread.abs() <= abs(level) * (1 + 1e-4) + 1e-5).all(), "a constant was amplified"


@promise("smoother")
def keeps_what_is_not_negative(smoother: Smoother, draw: Draw) -> None:
    """Non-negative values fold and spread to non-negative ones."""
    assert (smoother.temporal(_window(draw).abs()) >= 0).all()
    observation = draw(observations())
    spread = smoother.spatial(_scores(observation, draw).abs(), observation)
    assert (spread >= 0).all()


@promise("smoother")
def spreads_heads_of_several_processes(smoother: Smoother, draw: Draw) -> None:
    """Where each process has some heads of the layer, scores are those of one that has them all."""
    observation = draw(observations(grown=not across_heads(smoother)))
    scores = _scores(observation, draw)
    whole = smoother.spatial(scores, observation)
    found = in_shards(
        observation, lambda shown, heads, _: smoother.spatial(scores[:, heads], shown)
    )
    torch.testing.assert_close(found, whole, rtol=1e-4, atol=1e-6)


@promise("smoother")
def leaves_its_inputs_alone(smoother: Smoother, draw: Draw) -> None:
    """Neither part writes to what it is given."""
    values, observation = _window(draw), draw(observations())
    scores = _scores(observation, draw)
    with unchanged(values, scores, observation):
        smoother.temporal(values)
        smoother.spatial(scores, observation)


def _window(draw: Draw) -> Tensor:
    """Draw what W queries say about S positions, for any leading axes."""
    lead = draw(st.sampled_from([(), (3,), (2, 3)]))
    return normal(draw(SEEDS), *lead, draw(st.integers(1, 9)), draw(st.integers(1, 12)))


def _scores(observation: Observation, draw: Draw) -> Tensor:
    return normal(draw(SEEDS), *observation.queries.shape[:2], observation.length)
