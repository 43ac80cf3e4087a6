import attrs
import pytest
import torch

import kvpolicy
from kvpolicy.cache.eviction.one_layer import selected
from kvpolicy.errors import InvalidValueError
from kvpolicy.exactness.usages import tokens
from kvpolicy.stages.grouping import reduce_groups
from kvpolicy.testing import observation
from kvpolicy.testing.models import tiny_model
from kvpolicy_streamingllm import RecencyScorer


def test_the_recipe_keeps_four_sinks_and_the_most_recent():
    kept = selected(kvpolicy.recipe("streamingllm", budget=10), observation(positions=32)).indices
    assert kept.tolist() == [[[0, 1, 2, 3, 26, 27, 28, 29, 30, 31]] * 2]


def test_sinks_stay_when_it_evicts_again():
    # Of 1000 tokens the cache holds the four sinks and the last eight.
    positions = torch.tensor([0, 1, 2, 3, *range(992, 1000)]).expand(1, 2, -1)
    sample = observation(positions=12, window=1)
    layer = attrs.evolve(sample, positions=positions, seen=1000)
    kept = selected(kvpolicy.recipe("streamingllm", budget=10), layer).indices
    assert kept.tolist() == [[[0, 1, 2, 3, 6, 7, 8, 9, 10, 11]] * 2]


@torch.no_grad()
def test_a_stream_holds_the_sinks_and_the_latest_at_every_step_side_by_side():
    model, policy = tiny_model("llama"), kvpolicy.recipe("streamingllm", budget=10)
    with policy.cache(model) as cache:
        for seed, seen in enumerate([*range(1, 30)]):
            model(tokens(seed, 1), past_key_values=cache)
            expected = range(seen) if seen <= 10 else [*range(4), *range(seen - 6, seen)]
            for positions in cache.positions:
                assert positions[0, 0].tolist() == list(expected)
    assert policy.slot_positions


@torch.no_grad()
def test_what_a_stream_answers_depends_on_the_tokens_held_and_not_on_how_many_are_gone():
    # With one layer, a key depends on its own token alone.
    model = tiny_model("llama", num_hidden_layers=1)
    policy = kvpolicy.recipe("streamingllm", budget=10)
    ids = tokens(0, 60)
    held = torch.cat([ids[:, :4], ids[:, -7:]], 1)  # the last token saw one more than the budget
    answers = []
    for stream in (ids, held):
        with policy.cache(model) as cache:
            for token in stream.split(1, dim=1):
                last = model(token, past_key_values=cache).logits
        answers.append(last)
    torch.testing.assert_close(*answers, rtol=0, atol=1e-4)


@torch.no_grad()
def test_positions_of_the_text_and_eviction_at_the_end_of_a_prompt_are_a_setting_away():
    model = tiny_model("llama")
    policy = kvpolicy.recipe("streamingllm", budget=10, every=None, slot_positions=False)
    with policy.cache(model) as cache:
        model(tokens(0, 30), past_key_values=cache)
        for step in range(3):
            model(tokens(step, 1), past_key_values=cache)
        held = cache.positions[0][0, 0].tolist()
    assert held == [*range(4), *range(24, 33)]


@pytest.mark.parametrize(("seen", "radians"), [(100_000, 0.005), (1_000_000, 0.05)])
def test_the_angles_of_long_streams_are_off_by_what_the_readme_says(seen, radians):
    frequencies = 500_000.0 ** -(torch.arange(0, 128, 2).double() / 128)
    positions = torch.arange(seen - 1000, seen)[:, None]
    angles = positions.float() * frequencies.float()
    error = (angles.double() - positions.double() * frequencies).abs().max().item()
    assert 0.8 * radians < error < 1.2 * radians


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
