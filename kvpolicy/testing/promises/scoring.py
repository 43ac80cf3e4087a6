"""What every scorer promises."""

from __future__ import annotations

import attrs
import torch
from hypothesis import strategies as st

from kvpolicy.stages.observation import Observation
from kvpolicy.stages.scoring import Scorer
from kvpolicy.stages.smoothing import MeanSmoother, fold_of
from kvpolicy.testing.promises.inputs import unchanged
from kvpolicy.testing.promises.promise import Draw, promise
from kvpolicy.testing.strategies import observations

mean = fold_of(MeanSmoother())


@promise("scorer", examples=1)
def asks_for_a_window_that_can_be(scorer: Scorer, draw: Draw) -> None:
    """The window is None (all queries) or at least 1."""
    window = scorer.window
    assert window is None or (isinstance(window, int) and window >= 1), f"window is {window!r}"


@promise("scorer")
def scores_every_position(scorer: Scorer, draw: Draw) -> None:
    """Scores are finite float32 of shape (B, H, S)."""
    observation = draw(observations(window=scorer.window))
    _check_scores(scorer, observation)


@promise("scorer")
def takes_half_precision(scorer: Scorer, draw: Draw) -> None:
    """Keys and values in bfloat16 or float16 give finite float32 scores as well."""
    dtype = draw(st.sampled_from([torch.bfloat16, torch.float16]))
    _check_scores(scorer, draw(observations(window=scorer.window, dtype=dtype)))


@promise("scorer")
def takes_a_fold_without_weights(scorer: Scorer, draw: Draw) -> None:
    """A smoother that is no weighted sum, such as a maximum, folds the window as well."""
    observation = draw(observations(window=scorer.window))
    scores = scorer.score(observation, lambda values: values.amax(-2))
    assert scores.shape == (*observation.queries.shape[:2], observation.length)


@promise("scorer")
def leaves_the_observation_alone(scorer: Scorer, draw: Draw) -> None:
    """Scoring writes to none of the tensors that it is shown."""
    observation = draw(observations(window=scorer.window))
    with unchanged(observation):
        scorer.score(observation, mean)


@promise("scorer")
def scores_the_same_twice(scorer: Scorer, draw: Draw) -> None:
    """Scores depend on nothing but the observation."""
    observation = draw(observations(window=scorer.window))
    first, second = scorer.score(observation, mean), scorer.score(observation, mean)
    assert torch.equal(first, second), "the same observation was scored differently"


@promise("scorer")
def scores_a_sequence_as_if_alone(scorer: Scorer, draw: Draw) -> None:
    """A sequence's scores do not depend on what else is in its batch."""
    observation = draw(observations(window=scorer.window))
    whole = scorer.score(observation, mean)
    for row in range(len(whole)):
        alone = scorer.score(_row(observation, row), mean)
        torch.testing.assert_close(whole[row : row + 1], alone, rtol=1e-4, atol=1e-6)


def _check_scores(scorer: Scorer, observation: Observation) -> None:
    scores = scorer.score(observation, mean)
    assert scores.shape == (*observation.queries.shape[:2], observation.length)
    assert scores.dtype == torch.float32
    assert scores.isfinite().all(), "scores must be finite"


def _row(observation: Observation, row: int) -> Observation:
    only = slice(row, row + 1)
    return attrs.evolve(
        observation,
        queries=observation.queries[only],
        keys=observation.keys[only],
        values=observation.values[only],
        positions=observation.positions[only],
    )
