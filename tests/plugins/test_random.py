import pytest
import torch

import kvpolicy
from kvpolicy.cache.eviction.one_layer import selected
from kvpolicy.errors import InvalidValueError
from kvpolicy.testing import observation
from kvpolicy_random import RandomScorer


def scores(layer, **options):
    return RandomScorer(**options).score(layer, lambda rows: rows.mean(-2))


def test_the_same_seed_and_layer_draw_the_same():
    layer, other = observation(seed=1), observation(seed=2)
    state = torch.get_rng_state()
    assert torch.equal(scores(layer), scores(other))
    assert torch.equal(torch.get_rng_state(), state), "the global generator was touched"


def test_seeds_layers_and_heads_draw_differently():
    first, second = (observation(layer=layer, num_layers=2) for layer in (0, 1))
    draws = [scores(first), scores(second), scores(first, seed=1), scores(second, seed=1)]
    rows = torch.cat(draws).flatten(0, 1)
    assert len(rows.unique(dim=0)) == len(rows)


def test_every_sequence_of_a_batch_draws_the_same():
    drawn = scores(observation(batch=3))
    assert torch.equal(drawn, drawn[:1].expand_as(drawn))


def test_every_position_is_as_likely_to_stay():
    kept = torch.zeros(32)
    for seed in range(300):
        policy = kvpolicy.recipe("random", budget=8, scorer={"name": "random", "seed": seed})
        kept += torch.bincount(selected(policy, observation()).indices.flatten(), minlength=32)
    # 600 heads keep 8 of 32: 150 of each position, give or take 11.
    assert kept.sum() == 600 * 8
    assert kept.sub(150).abs().max() < 45


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 0}, "'window' must be at least 1, not 0"),
        ({"window": True}, "'window' must be an int, not True"),
        ({"seed": -1}, "'seed' must be at least 0, not -1"),
        ({"seed": 2**32}, "'seed' must be at most 4294967295, not 4294967296"),
        ({"seed": 0.5}, "'seed' must be .*int.*0.5"),
        ({"seed": False}, "'seed' must be an int, not False"),
    ],
)
def test_mistakes_are_named(options, message):
    with pytest.raises(InvalidValueError, match=f"scorer 'random': {message}"):
        kvpolicy.compose(scorer={"name": "random", **options})
