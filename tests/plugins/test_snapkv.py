import pytest
import torch
import torch.nn.functional as F

import kvpolicy
from kvpolicy.cache.eviction.one_layer import selected
from kvpolicy.errors import InvalidValueError
from kvpolicy.stages.smoothing import fold_of
from kvpolicy.testing import observation
from kvpolicy_snapkv import AttentionScorer, PoolingSmoother


def scores_of(layer):
    shape = (*layer.queries.shape[:2], layer.length)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def test_scores_are_the_mean_attention_of_the_window():
    layer = observation(positions=20, batch=2)
    expected = layer.attention.mean(2)
    torch.testing.assert_close(AttentionScorer().score(layer, fold_of(PoolingSmoother())), expected)
    torch.testing.assert_close(AttentionScorer().score(layer, lambda rows: rows.mean(-2)), expected)


@pytest.mark.parametrize("width", [1, 3, 7])
def test_pooling_is_torchs_on_the_past_alone(width):
    layer = observation()
    scores, past = scores_of(layer), layer.length - layer.window
    for pooling, pool in (("avg", F.avg_pool1d), ("max", F.max_pool1d)):
        smoothed = PoolingSmoother(pooling=pooling, width=width).spatial(scores, layer)
        expected = pool(scores[..., :past], width, stride=1, padding=width // 2)
        torch.testing.assert_close(smoothed[..., :past], expected)
        assert torch.equal(smoothed[..., past:], scores[..., past:])


@pytest.mark.parametrize("pooling", ["avg", "max", "none"])
def test_a_prompt_that_is_all_window_is_left_alone(pooling):
    layer = observation(positions=3)
    scores = scores_of(layer)
    assert torch.equal(PoolingSmoother(pooling=pooling).spatial(scores, layer), scores)


def test_without_pooling_scores_stay_as_they_are():
    layer = observation()
    scores = scores_of(layer)
    assert torch.equal(PoolingSmoother(pooling="none").spatial(scores, layer), scores)


def test_the_recipe_protects_its_window():
    policy = kvpolicy.recipe("snapkv", budget=40)
    assert policy == kvpolicy.compose(scorer="snapkv", smoother="pooling", budget=40)
    assert (policy.scorer.window, policy.smoother.width, policy.recent) == (32, 5, 32)

    kept = selected(policy, observation(positions=100, window=32)).indices

    assert kept.shape[-1] == 40
    assert torch.equal(kept[..., -32:], torch.arange(68, 100).expand(1, 2, -1))


@pytest.mark.parametrize(
    ("part", "options", "message"),
    [
        ("scorer", {"window": 0}, "'window' must be at least 1, not 0"),
        ("scorer", {"window": "x"}, "'window' must be .*int.*'x'"),
        ("scorer", {"window": True}, "'window' must be an int, not True"),
        ("smoother", {"width": 4}, "'width' must be odd, .* not 4"),
        ("smoother", {"width": -1}, "'width' must be at least 1, not -1"),
        ("smoother", {"width": True}, "'width' must be an int, not True"),
        ("smoother", {"width": "x"}, "'width' must be an int, not 'x'"),
        ("smoother", {"pooling": "adaptive"}, "'pooling' must be one of .*'avg', 'max', 'none'"),
    ],
)
def test_mistakes_are_named(part, options, message):
    names = {"scorer": "snapkv", "smoother": "pooling"}
    parts = names | {part: {"name": names[part], **options}}
    with pytest.raises(InvalidValueError, match=f"{part} '{names[part]}': {message}"):
        kvpolicy.compose(**parts)
