"""What every scorer promises."""

from __future__ import annotations

import attrs
import torch
from hypothesis import reject
from hypothesis import strategies as st

from kvpolicy.errors import InvalidValueError, UnsupportedModelError
from kvpolicy.observation.observation import Observation
from kvpolicy.pipeline.capabilities import ChecksModel, ModelFacts, needs_of
from kvpolicy.stages.scoring import NotingScorer, RunningScorer, Scorer, with_state
from kvpolicy.stages.smoothing import MeanSmoother, fold_of
from kvpolicy.testing.promises.inputs import unchanged
from kvpolicy.testing.promises.promise import Draw, promise
from kvpolicy.testing.shards import in_shards
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
    observation = _shown(scorer, draw)
    _check_scores(scorer, observation)


@promise("scorer")
def takes_every_precision(scorer: Scorer, draw: Draw) -> None:
    """Keys and values in bfloat16, float16 or float64 give finite float32 scores as well."""
    dtype = draw(st.sampled_from([torch.bfloat16, torch.float16, torch.float64]))
    _check_scores(scorer, _shown(scorer, draw, dtype))


@promise("scorer")
def takes_a_fold_without_weights(scorer: Scorer, draw: Draw) -> None:
    """A smoother that is no weighted sum, such as a maximum, folds the window as well."""
    observation = _shown(scorer, draw)
    scores = scorer.score(observation, lambda values: values.amax(-2))
    assert scores.shape == (*observation.queries.shape[:2], observation.length)


@promise("scorer")
def leaves_the_observation_alone(scorer: Scorer, draw: Draw) -> None:
    """Scoring writes to none of the tensors that it is shown."""
    observation = _shown(scorer, draw)
    with unchanged(observation):
        scorer.score(observation, mean)


@promise("scorer")
def scores_the_same_twice(scorer: Scorer, draw: Draw) -> None:
    """Scores depend on nothing but the observation."""
    observation = _shown(scorer, draw)
    first, second = scorer.score(observation, mean), scorer.score(observation, mean)
    assert torch.equal(first, second), "the same observation was scored differently"


@promise("scorer")
def scores_a_sequence_as_if_alone(scorer: Scorer, draw: Draw) -> None:
    """A sequence's scores do not depend on what else is in its batch."""
    observation = _shown(scorer, draw)
    whole = scorer.score(observation, mean)
    for row in range(len(whole)):
        alone = scorer.score(observation.row(row), mean)
        torch.testing.assert_close(whole[row : row + 1], alone, rtol=1e-4, atol=1e-6)


@promise("scorer")
def scores_heads_of_several_processes(scorer: Scorer, draw: Draw) -> None:
    """Where each process has some heads of the layer, scores are those of one that has them all."""
    observation = _shown(scorer, draw)
    whole = scorer.score(observation, mean)
    found = in_shards(observation, lambda shown, *_: scorer.score(shown, mean))
    torch.testing.assert_close(found, whole, rtol=1e-4, atol=1e-6)


@promise("scorer")
def runs_on_from_its_state(scorer: Scorer, draw: Draw) -> None:
    """Running state has a finite float32 entry or more for each head and position.

    Read in two forwards, a prompt leaves the state that it leaves in one.
    """
    if not isinstance(scorer, RunningScorer):
        return
    observation = draw(observations(window=None, grown=False))
    whole = scorer.accumulate(observation)
    assert whole.shape[:3] == (*observation.queries.shape[:2], observation.length)
    assert whole.dtype == torch.float32
    assert whole.isfinite().all(), "state must be finite"
    if observation.length == 1:
        return
    cut = draw(st.integers(1, observation.length - 1))
    first = scorer.accumulate(_shortened(observation, cut))
    padding = [0, 0] * (first.dim() - 3) + [0, observation.length - cut]
    rest = attrs.evolve(
        observation,
        queries=observation.queries[:, :, cut:],
        state=torch.nn.functional.pad(first, padding),
    )
    found, before = scorer.accumulate(rest), whole.clone()
    torch.testing.assert_close(found, whole, rtol=1e-4, atol=1e-5)
    assert found.data_ptr() != whole.data_ptr(), "two states share their memory"
    torch.testing.assert_close(before, whole, rtol=0, atol=0)


@promise("scorer", examples=20)
def notes_what_its_state_says(scorer: Scorer, draw: Draw) -> None:
    """If a scorer notes something beside its state, it returns the same states with its notes."""
    if not isinstance(scorer, NotingScorer):
        return
    observation = draw(observations(window=None, grown=False))
    cut = draw(st.integers(1, observation.length))
    before = _shortened(observation, cut)
    first, noted = scorer.accumulate_noted(before)
    assert torch.equal(first, scorer.accumulate(before)), "notes change the state"
    assert noted is None or len(noted) == len(first), "there must be a note for each row"
    if cut == observation.length:
        return
    padding = [0, 0] * (first.dim() - 3) + [0, observation.length - cut]
    state = torch.nn.functional.pad(first, padding)
    rest = attrs.evolve(observation, queries=observation.queries[:, :, cut:], state=state)
    known = scorer.accumulate(attrs.evolve(rest, noted=noted))
    assert torch.equal(known, scorer.accumulate(rest)), "the notes say what the state does not"


def _shown(scorer: Scorer, draw: Draw, dtype: torch.dtype = torch.float32) -> Observation:
    """Draw a layer as `scorer` is shown it, with running state if it wants any."""
    observation = draw(observations(window=scorer.window, dtype=dtype))
    if any(getattr(observation, need) is None for need in needs_of(scorer)):
        reject()
    if isinstance(scorer, ChecksModel):
        _reject_what_does_not_fit(scorer, observation)
    return with_state(scorer, observation)


def _reject_what_does_not_fit(part: ChecksModel, observation: Observation) -> None:
    """Draw again if the part refuses models such as this layer is from."""
    facts = ModelFacts(
        name="this layer",
        layers=observation.num_layers,
        heads=observation.queries.shape[1],
        kv_heads=observation.keys.shape[1],
        has_rotary=observation.rotary is not None,
    )
    try:
        part.check_model(facts)
    except (InvalidValueError, UnsupportedModelError):
        reject()


def _shortened(observation: Observation, length: int) -> Observation:
    """Return a prompt's layer as it was when only `length` of its tokens had been read."""
    return attrs.evolve(
        observation,
        queries=observation.queries[:, :, :length],
        keys=observation.keys[:, :, :length],
        values=observation.values[:, :, :length],
        positions=observation.positions[:, :, :length],
        seen=length,
    )


def _check_scores(scorer: Scorer, observation: Observation) -> None:
    scores = scorer.score(observation, mean)
    assert scores.shape == (*observation.queries.shape[:2], observation.length)
    assert scores.dtype == torch.float32
    assert scores.isfinite().all(), "scores must be finite"
