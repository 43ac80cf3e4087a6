import attrs
import pytest
import torch

import kvpolicy
from kvpolicy.errors import InvalidValueError
from kvpolicy.policy import reduce_groups
from kvpolicy.testing import observation
from kvpolicy_streamingllm import RecencyScorer


def test_the_recipe_keeps_four_sinks_and_the_most_recent():
    kept = kvpolicy.recipe("streamingllm", budget=10).select(observation(positions=32)).indices
    assert kept.tolist() == [[[0, 1, 2, 3, 26, 27, 28, 29, 30, 31]] * 2]


def test_sinks_stay_when_it_evicts_again():
    # Of 1000 tokens the cache holds the four sinks and the last eight.
    positions = torch.tensor([0, 1, 2, 3, *range(992, 1000)]).expand(1, 2, -1)
    sample = observation(positions=12, window=1)
    layer = attrs.evolve(sample, positions=positions, seen=1000)
    kept = kvpolicy.recipe("streamingllm", budget=10).select(layer).indices
    assert kept.tolist() == [[[0, 1, 2, 3, 6, 7, 8, 9, 10, 11]] * 2]


@pytest.mark.parametrize("group", ["mean", "max", "sum"])
def test_later_positions_score_higher_in_long_prompts_too(group):
    keys = torch.zeros(1, 1, 2**20, 1)
    layer = kvpolicy.Observation(queries=torch.zeros(1, 3, 1, 1), keys=keys, values=keys)
    scores = reduce_groups(RecencyScorer().score(layer, lambda rows: rows[..., 0, :]), 1, group)
    assert (scores.diff() > 0).all()


@pytest.mark.parametrize(
    ("window", "message"),
    [
        (0, "'window' must be at least 1, not 0"),
        ("x", "'window' must be .*int.*'x'"),
        (True, "'window' must be an int, not True"),
    ],
)
def test_mistakes_are_named(window, message):
    with pytest.raises(InvalidValueError, match=f"scorer 'streamingllm': {message}"):
        kvpolicy.compose(scorer={"name": "streamingllm", "window": window})
