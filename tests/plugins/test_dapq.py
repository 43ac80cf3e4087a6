import json
import math

import attrs
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import kvpolicy
from kvpolicy.errors import InvalidValueError, UnsupportedModelError
from kvpolicy.exactness.limits import LIMIT
from kvpolicy.exactness.usages import USAGES, small_policy
from kvpolicy.observation.rotary import PlainRotary, rotated
from kvpolicy.stages.smoothing import MeanSmoother, fold_of
from kvpolicy.testing import contract, observation
from kvpolicy.testing.models import tiny_model
from kvpolicy.testing.samples import normal
from kvpolicy_dapq import PseudoQueryScorer

test_contract = contract(plugin="dapq")
mean = fold_of(MeanSmoother())
INNER = ("snapkv", "restkv", "jointrestkv", "windowedrestkv")
SETTINGS = {
    "plain": {},
    "soft cap": {"softcap": 2.0},
    "sinks": {"sink_logits": torch.linspace(-1, 1, 4)},
    "scaling": {"scaling": 0.7},
}


class StillRotary:
    """A rotary embedding that turns nothing."""

    interleaved = False

    def tables(self, positions):
        still = torch.ones((*positions.shape, 8))
        return still, torch.zeros_like(still)


def prompt(earlier=0, window=30, groups=2, **settings):
    """A layer of two sequences, and its queries before rotary embedding."""
    rotary, plain = PlainRotary(dim=8, base=100.0), normal(11, 2, 2 * groups, window, 8) * 2
    positions = torch.arange(earlier + 30 - window, earlier + 30)
    layer = observation(
        batch=2,
        positions=30,
        groups=groups,
        window=window,
        seen=earlier + 30,
        queries=rotated(plain, positions, rotary),
        rotary=rotary,
    )
    return attrs.evolve(layer, **settings), plain


def turned(vector, position):
    """The rotary formula for one query, pair by pair: channels j and j + 4 are a pair."""
    found = torch.empty(8, dtype=torch.float64)
    for j in range(4):
        x, y, angle = float(vector[j]), float(vector[j + 4]), position * 100.0 ** (-j / 4)
        found[j] = x * math.cos(angle) - y * math.sin(angle)
        found[j + 4] = x * math.sin(angle) + y * math.cos(angle)
    return found


def expected_attention(layer, plain, places, weights):
    """The attention of the pseudo queries, one at a time, in double precision."""
    batch, heads = plain.shape[:2]
    groups = heads // layer.keys.shape[1]
    scores = torch.zeros(batch, heads, layer.length, dtype=torch.float64)
    for row in range(batch):
        for head in range(heads):
            keys = layer.keys[row, head // groups].double()
            for step, (place, weight) in enumerate(zip(places, weights, strict=True)):
                query = turned(plain[row, head, place], layer.seen + step)
                logits = keys @ query * layer.scaling
                if layer.softcap is not None:
                    logits = layer.softcap * torch.tanh(logits / layer.softcap)
                if layer.sink_logits is not None:
                    logits = torch.cat([logits, layer.sink_logits[head, None].double()])
                scores[row, head] += weight * logits.softmax(-1)[: layer.length]
    return scores


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("groups", [1, 2, 3])
def test_scores_are_the_attention_of_queries_turned_by_the_formula(settings, groups):
    if groups != 2 and "sink_logits" in settings:
        settings = {"sink_logits": torch.linspace(-1, 1, 2 * groups)}
    layer, plain = prompt(groups=groups, **settings)
    scores = PseudoQueryScorer(tokens=6).score(layer, mean)
    expected = expected_attention(layer, plain, range(24, 30), [1 / 6] * 6)
    torch.testing.assert_close(scores.double(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("content", "tokens", "places"),
    [
        ("last", 3, [27, 28, 29]),
        ("last", 40, range(30)),
        ("spread", 1, [29]),
        ("spread", 3, [9, 19, 29]),
        ("spread", 4, [6, 14, 21, 29]),
        ("spread", 40, range(30)),
    ],
)
def test_tokens_keep_their_order_and_each_has_the_position_of_its_turn(content, tokens, places):
    """The weights differ, so a query at another's position or in another's place is found."""
    layer, plain = prompt(earlier=7)
    weights = torch.arange(1.0, len(places) + 1) / len(places)
    scorer = PseudoQueryScorer(tokens=tokens, content=content)
    scores = scorer.score(layer, lambda rows: weights @ rows)
    expected = expected_attention(layer, plain, places, weights.tolist())
    torch.testing.assert_close(scores.double(), expected, rtol=1e-4, atol=1e-6)


def test_of_a_turn_that_follows_another_its_own_tokens_are_spread():
    layer, plain = prompt(earlier=20, window=8)
    scores = PseudoQueryScorer(tokens=2, content="spread").score(layer, mean)
    expected = expected_attention(layer, plain, [3, 7], [0.5, 0.5])
    torch.testing.assert_close(scores.double(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", INNER)
@pytest.mark.parametrize("tokens", [1, 6])
def test_where_nothing_is_turned_it_is_the_other_scorer_shown_the_last_queries(name, tokens):
    component = {"name": name, "window": tokens}
    if name in ("restkv", "jointrestkv"):
        component["o_includes_window"] = True
    layer = observation(positions=30, window=30, batch=2, rotary=StillRotary())
    last = attrs.evolve(layer, queries=layer.queries[:, :, -tokens:])
    asked = kvpolicy.compose(scorer=component, budget=8).scorer

    scores = PseudoQueryScorer(scorer=component, tokens=tokens).score(layer, mean)

    seeing_all = attrs.evolve(last, ahead=True)
    assert torch.equal(scores, asked.score(seeing_all, mean))
    if tokens == 1:  # The very last query sees all positions anyway.
        torch.testing.assert_close(scores, asked.score(last, mean))


@pytest.mark.parametrize("content", ["last", "spread"])
def test_far_into_a_text_distance_alone_matters(content):
    here, plain = prompt()
    far = 1000
    rotary = here.rotary
    moved = {
        "queries": rotated(plain, torch.arange(far, far + 30), rotary),
        "keys": rotated(normal(3, 2, 2, 30, 8), torch.arange(far, far + 30), rotary),
        "positions": torch.arange(far, far + 30).expand(2, 2, -1),
        "seen": far + 30,
    }
    here = attrs.evolve(here, keys=rotated(normal(3, 2, 2, 30, 8), torch.arange(30), rotary))
    scorer = PseudoQueryScorer(tokens=5, content=content)
    torch.testing.assert_close(
        scorer.score(attrs.evolve(here, **moved), mean),
        scorer.score(here, mean),
        rtol=1e-3,
        atol=1e-4,
    )


def test_each_sequence_of_a_batch_is_scored_as_if_alone():
    layer, _ = prompt()
    scorer = PseudoQueryScorer(scorer="restkv", tokens=6)
    whole = scorer.score(layer, mean)
    for row in range(2):
        torch.testing.assert_close(scorer.score(layer.row(row), mean), whole[row : row + 1])


def test_half_precision_stays_half_precision_until_scores():
    layer = observation(positions=9, window=9, dtype=torch.bfloat16)
    scores = PseudoQueryScorer(tokens=4).score(layer, mean)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores.sum(-1), torch.ones(1, 4), rtol=1e-2, atol=1e-2)


def test_the_recipe_is_snapkv_asked_with_no_token_protected():
    policy = kvpolicy.recipe("dapq", budget=10)
    assert policy == kvpolicy.compose(
        scorer={"name": "dapq", "scorer": "snapkv", "tokens": 32, "content": "last"},
        smoother="pooling",
        recent=0,
        budget=10,
    )
    assert policy.scorer.window == 32
    assert PseudoQueryScorer(content="spread").window is None


def test_the_recipe_goes_through_json():
    policy = kvpolicy.recipe("dapq", scorer={"scorer": {"name": "restkv", "window": 8}})
    data = json.loads(json.dumps(policy.to_dict()))
    assert kvpolicy.Policy.from_dict(data) == policy
    assert data["scorer"]["scorer"] == {"name": "restkv", "window": 8}
    assert len({policy, kvpolicy.Policy.from_dict(data), kvpolicy.recipe("dapq")}) == 2


@pytest.mark.sampled(4, "usage")
@pytest.mark.parametrize("usage", USAGES)
@torch.no_grad()
def test_every_usage_is_exact_while_it_evicts_every_four_tokens(usage):
    policy = small_policy("dapq", every=4, scorer={"tokens": 8})
    assert USAGES[usage](tiny_model(), policy) <= LIMIT


@pytest.mark.parametrize("content", ["last", "spread"])
@pytest.mark.parametrize("family", ["gemma2", "qwen3", "phi3"])
def test_a_model_of_any_family_keeps_the_budget(family, content):
    model = tiny_model(family, attn_implementation="eager")
    cache = kvpolicy.recipe("dapq", scorer={"content": content}, budget=24).cache(model)
    model.generate(torch.arange(1, 101)[None], past_key_values=cache, max_new_tokens=2)
    assert cache.report().held <= 26


def test_a_model_without_known_rotary_embedding_is_refused():
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model("gpt2", vocab_size=128, n_embd=32, n_layer=2, n_head=4)
    )
    with pytest.raises(UnsupportedModelError, match=r"'dapq'.* rotary embedding of G"):
        small_policy("dapq").cache(model)
    with pytest.raises(UnsupportedModelError, match=r"queries cannot be turned .* not known"):
        PseudoQueryScorer().score(observation(rotary=None), mean)


def test_spread_tokens_are_refused_while_decoding():
    with pytest.raises(InvalidValueError, match=r"every=8 .*'dapq'.* whole prompt"):
        kvpolicy.recipe("dapq", scorer={"content": "spread"}, every=8)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("tokens", 0, "'tokens' must be at least 1, not 0"),
        ("content", "first", "'content' must be one of 'last', 'spread', not 'first'"),
        ("scorer", "dapq", "scorer 'dapq' .* does not say `replayable`"),
    ],
)
def test_mistakes_are_named(option, value, message):
    with pytest.raises(InvalidValueError, match=message):
        kvpolicy.compose(scorer={"name": "dapq", option: value})
