import attrs
import pytest
import torch
import torch.nn.functional as F

import kvpolicy
from kvpolicy.cache.eviction.one_layer import selected
from kvpolicy.errors import InvalidValueError
from kvpolicy.exactness.usages import tokens
from kvpolicy.testing import contract, observation
from kvpolicy.testing.models import tiny_model
from kvpolicy_keydiff import KeyDiffScorer

test_contract = contract(plugin="keydiff")


def scores_of(layer):
    return KeyDiffScorer().score(layer, lambda rows: rows.mean(-2))


@pytest.mark.golden("keydiff")
def test_scores_are_those_of_kvpress(case):
    scores = scores_of(case.observation(window=1))
    expected = case.array("scores").repeat_interleave(4, 1)
    torch.testing.assert_close(scores, expected, rtol=2e-4, atol=1e-6)


def test_scores_are_the_formulas_in_double_precision():
    layer = observation(positions=50, batch=2, heads=3)
    keys = layer.keys.double()
    anchor = (keys / keys.norm(dim=-1, keepdim=True)).mean(2, keepdim=True)
    expected = -F.cosine_similarity(keys, anchor, dim=-1).repeat_interleave(2, 1)
    torch.testing.assert_close(scores_of(layer).double(), expected, rtol=1e-5, atol=1e-6)


def test_the_length_of_a_key_does_not_matter():
    layer = observation(positions=30)
    scales = torch.rand(30, 1, generator=torch.Generator().manual_seed(0)) * 100 + 0.01
    longer = kvpolicy.Observation(
        queries=layer.queries, keys=layer.keys * scales, values=layer.values
    )
    torch.testing.assert_close(scores_of(longer), scores_of(layer), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("keys", [[[0.0, 0.0], [0.0, 0.0]], [[1.0, 0.0], [-1.0, 0.0]]])
def test_keys_without_a_mean_direction_score_nothing(keys):
    keys = torch.tensor([[keys]])
    layer = kvpolicy.Observation(queries=keys[:, :, :1], keys=keys, values=keys)
    assert scores_of(layer).tolist() == [[[0.0, 0.0]]]


def test_of_keys_that_say_the_same_few_are_kept():
    keys = torch.tensor([[1.0, 0.0]] * 9 + [[0.0, 1.0], [-1.0, 0.0]])[None, None]
    layer = kvpolicy.Observation(queries=keys[:, :, :1], keys=keys, values=keys)
    kept = selected(kvpolicy.recipe("keydiff", budget=3), layer).indices
    assert kept.tolist() == [[[0, 9, 10]]]


@torch.no_grad()
def test_a_prompt_read_in_blocks_never_takes_more_than_the_budget_and_a_block():
    model, policy = tiny_model("llama"), kvpolicy.recipe("keydiff", budget=32)
    sizes = []
    with policy.cache(model) as cache:
        for block in tokens(0, 100).split(16, dim=1):
            model(block, past_key_values=cache)
            sizes.append(cache.positions[0].shape[-1])
        for step in range(3):
            model(tokens(step, 1), past_key_values=cache)
            sizes.append(cache.positions[0].shape[-1])
    assert sizes == [16] + [32] * 9


@pytest.mark.parametrize(
    ("window", "message"),
    [(0, "'window' must be at least 1, not 0"), (True, "'window' must be an int, not True")],
)
def test_mistakes_are_named(window, message):
    with pytest.raises(InvalidValueError, match=f"scorer 'keydiff': {message}"):
        kvpolicy.compose(scorer={"name": "keydiff", "window": window})


def test_of_two_keys_the_first_stays_however_they_are_rounded():
    layer = observation(positions=2, window=1)
    for seed in range(20):
        noise = torch.randn(layer.keys.shape, generator=torch.Generator().manual_seed(seed))
        noisy = attrs.evolve(layer, keys=layer.keys * (1 + 1e-6 * noise))
        first, second = scores_of(noisy).unbind(-1)
        assert torch.equal(first, second)
