"""Inkling adds a bias by distance: attention and parts have it of the keys' true positions."""

import gc

import attrs
import pytest
import torch
from transformers import DynamicCache
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import kvpolicy
from kvpolicy.errors import KvpolicyError, UnsupportedModelError
from kvpolicy.exactness.architectures import tiny_architecture
from kvpolicy.exactness.limits import LIMIT
from kvpolicy.exactness.usages import BITWISE, USAGES, WAYS, small_policy, tokens
from kvpolicy.exactness.usages.inputs import padded
from kvpolicy.observation.position_bias import PositionBias
from kvpolicy.pipeline.capabilities import follows_bias
from kvpolicy.pipeline.pipeline import Pipeline
from kvpolicy.stages.compaction import GatherCompactor
from kvpolicy.testing.samples import normal, observation
from kvpolicy_restkv.drift import attention_drift

pytestmark = [
    pytest.mark.skipif(
        "inkling_text" not in CONFIG_MAPPING, reason="this transformers has no Inkling"
    ),
    pytest.mark.filterwarnings("ignore"),
]
RECIPES = [part.name for part in kvpolicy.installed("recipe")]
REFUSED = (
    "streamingllm",
    "lacache",
    "lagkv",
    "momentkv",
    "expectedattention",
    "capkv",
    "dapq",
    "kvzip",
    "kvzipplus",
    "obcache",
    "replay",
    "rkv",
    "triattention",
)
CROPS = ("after crop",)


@pytest.fixture(autouse=True)
def _quiet():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def model(request):
    return tiny_architecture("inkling_text", attn_implementation=request.param)


@pytest.fixture(scope="module")
def eager():
    return tiny_architecture("inkling_text", attn_implementation="eager")


USED = [usage for usage in USAGES | WAYS if usage not in CROPS]


@pytest.mark.sampled(17, "recipe", "usage")
@pytest.mark.parametrize("usage", USED)
@pytest.mark.parametrize("recipe", ["restkv", "adakv"])
def test_every_usage_is_exact(model, recipe, usage):
    difference = (USAGES | WAYS)[usage](model, small_policy(recipe))
    assert difference <= (0 if usage in BITWISE else LIMIT)


@pytest.mark.sampled(2, "recipe", "usage")
@pytest.mark.parametrize("usage", ["one prompt", "second turn of a padded batch"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_is_exact_or_refused_by_name(eager, recipe, usage):
    policy = small_policy(recipe)
    if recipe in REFUSED:
        with pytest.raises(UnsupportedModelError, match="InklingForCausalLM"):
            policy.cache(eager)
    elif type(policy.compactor) is GatherCompactor:
        assert USAGES[usage](eager, policy) <= LIMIT
    else:
        policy.cache(eager).close()


@pytest.mark.parametrize(
    ("recipe", "changes"),
    [
        ("snapkv", {"every": 1}),
        ("h2o", {"every": 1}),
        ("adakv", {"every": 1}),
        ("snapkv", {"per_turn": True}),
        ("restkv", {"recent": 4, "sinks": 2}),
        ("restkv", {"budget": kvpolicy.within(0.2)}),
    ],
)
def test_settings_are_exact(eager, recipe, changes):
    assert USAGES["five turns"](eager, small_policy(recipe, **changes)) <= LIMIT


@pytest.mark.parametrize("recipe", ["restkv", "adakv"])
def test_the_yardstick_notices_a_bias_by_slots(eager, recipe, monkeypatch):
    whole = PositionBias.of

    def by_slots(self, positions, **options):
        last = torch.arange(self.read - positions.shape[-1], self.read)
        return whole(attrs.evolve(self, shifts=None), last.expand_as(positions), **options)

    monkeypatch.setattr(PositionBias, "of", by_slots)
    assert USAGES["second turn by forward"](eager, small_policy(recipe)) > 10 * LIMIT


class Spy:
    """Scores like SnapKV, and remembers what it was shown."""

    window = 8
    position_bias = True

    def __init__(self):
        self.shown = []

    def score(self, observation, reduce):
        # Rows may move in their memory once they were scored.
        self.shown.append((observation, observation.attention))
        return observation.folded_attention(reduce)


def spied(**settings):
    spy = Spy()
    return spy, kvpolicy.compose(scorer=spy, smoother="pooling", budget=24, **settings)


def assert_shown(spy, weights, layers):
    """Each observation has the last rows of the attention that the model computed."""
    for each, attention in spy.shown:
        own = weights[layers[each.layer]][:, :, -each.window :]
        assert own.shape[-1] == each.length
        torch.testing.assert_close(attention, own)


def test_parts_are_shown_the_attention_of_the_model(eager):
    spy, policy = spied()
    cache = policy.cache(eager)
    layers = [at for at, each in enumerate(cache.layers) if each in cache.policy_layers]
    for ids in (tokens(0), tokens(1, 20), tokens(2, 9)):
        spy.shown.clear()
        weights = eager(input_ids=ids, past_key_values=cache, output_attentions=True).attentions
        assert len(spy.shown) == len(layers)
        assert all(each.position_bias is not None for each, _ in spy.shown)
        assert_shown(spy, weights, layers)


def test_a_row_that_was_padded_is_shown_what_it_is_shown_alone(eager):
    spy, policy = spied()
    ids, mask = padded([60, 41])
    eager(input_ids=ids, attention_mask=mask, past_key_values=policy.cache(eager))
    both = list(spy.shown)
    spy.shown.clear()
    eager(input_ids=ids[1:, 19:], past_key_values=policy.cache(eager))
    short = [attention for each, attention in both if each.length == 41]
    assert len(short) == len(spy.shown) == 2
    for ours, (_, alone) in zip(short, spy.shown, strict=True):
        torch.testing.assert_close(ours, alone)


def test_uneven_heads_are_shown_and_attend_with_their_own_bias(eager):
    spy, policy = spied(allocator="adakv")
    cache = policy.cache(eager)
    eager(input_ids=tokens(0), past_key_values=cache)
    assert any(layer.memory.contents.ragged is not None for layer in cache.policy_layers)
    spy.shown.clear()
    eager(input_ids=tokens(1, 20), past_key_values=cache)
    apart = [each for each, _ in spy.shown if each.queries.shape[1] == 2]
    assert len({(each.layer, each.length) for each in apart}) > 2
    for each in apart:
        distance = each.query_positions[:, None] - each.positions[0, 0]
        far = (distance >= eager.config.rel_extent).expand_as(each.position_bias)
        assert (each.position_bias[far] == 0).all()
        assert (each.position_bias[~far & (distance >= 0)] != 0).any()


def test_window_layers_are_left_as_they_are(model):
    cache = small_policy("snapkv", budget=200).cache(model)
    plain = DynamicCache(config=model.config)
    for turn, length in enumerate((60, 1, 7, 1)):
        ids = tokens(turn, length)
        ours = model(input_ids=ids, past_key_values=cache).logits
        assert torch.equal(ours, model(input_ids=ids, past_key_values=plain).logits)
    for mine, other in zip(cache.layers, plain.layers, strict=True):
        if mine not in cache.policy_layers:
            assert type(mine) is type(other)
            assert mine.keys.shape[2] == model.config.sliding_window - 1
            assert torch.equal(mine.keys, other.keys)
        for state in ("conv_states", "recurrent_states"):
            pairs = zip(getattr(mine, state).values(), getattr(other, state).values(), strict=True)
            assert all(a is b is None or torch.equal(a, b) for a, b in pairs)


def test_gradients_reach_the_bias(eager):
    with torch.enable_grad():
        for allocator in ("uniform", "adakv"):
            cache = spied(allocator=allocator)[1].cache(eager)
            eager(input_ids=tokens(0), past_key_values=cache)
            logits = eager(input_ids=tokens(1, 5), past_key_values=cache).logits
            layer = eager.model.layers[1].self_attn.rel_logits_proj.proj
            (found,) = torch.autograd.grad(logits.square().sum(), [layer])
            assert found.abs().sum() > 0
    gc.collect()


def _scorers():
    """Every scorer that says that it follows a bias, with its default options."""
    for part in kvpolicy.installed("scorer"):
        try:
            policy = kvpolicy.compose(scorer=part.name, budget=9)
        except KvpolicyError:
            continue
        if follows_bias(policy.scorer):
            yield pytest.param(policy, id=part.name)


def scored(policy: Pipeline, layer):
    state = policy.accumulate(layer)
    fold = policy.fold if hasattr(policy, "fold") else policy.smoother.temporal
    return policy.scorer.score(attrs.evolve(layer, state=state), fold)


@pytest.mark.parametrize("policy", list(_scorers()))
def test_a_scorer_takes_the_bias_as_more_channels_of_keys(policy):
    """The same logits without a bias: a query has a 1 where a key has the bias for it."""
    window = 24 if policy.window is None else min(4, policy.window)
    plain = observation(heads=4, groups=1, positions=24, window=window)
    bias = 2 * normal(7, 1, 4, window, 24)
    places = torch.eye(window).expand(1, 4, -1, -1)
    more = attrs.evolve(
        plain,
        queries=torch.cat([plain.queries, places], -1),
        keys=torch.cat([plain.keys, bias.mT / plain.scaling], -1),
    )
    biased = attrs.evolve(plain, position_bias=bias)
    found = scored(policy, biased)
    other = attrs.evolve(plain, queries=plain.queries.flip(2) + 1)
    if torch.equal(scored(policy, plain), scored(policy, other)):
        # Its scores know no queries.
        assert torch.equal(found, scored(policy, plain))
    else:
        torch.testing.assert_close(found, scored(policy, more), rtol=1e-4, atol=1e-5)


def test_the_drift_of_attention_has_the_bias():
    plain = observation(heads=4, groups=1, positions=24, window=6, budget=15)
    bias = 2 * normal(7, 1, 4, 6, 24)
    places = torch.eye(6).expand(1, 4, -1, -1)
    more = attrs.evolve(
        plain,
        queries=torch.cat([plain.queries, places], -1),
        keys=torch.cat([plain.keys, bias.mT / plain.scaling], -1),
    )
    found = attention_drift(attrs.evolve(plain, position_bias=bias))
    assert torch.equal(found, attention_drift(more))
    assert not torch.equal(found, attention_drift(plain))


@pytest.mark.parametrize(
    ("settings", "options", "reason"),
    [
        ({"every": 8}, {}, "With every=8 a policy scores by queries of earlier tokens"),
        ({}, {"prefill": "ashape"}, "sparse prefill lacks"),
        ({"slot_positions": True}, {}, "the rotary embedding of some layers"),
    ],
)
def test_what_does_not_follow_is_refused(model, settings, options, reason):
    with pytest.raises(UnsupportedModelError, match=reason):
        small_policy("snapkv", **settings).cache(model, **options)


def test_a_part_that_does_not_say_so_is_refused(model):
    spy, policy = spied()
    policy.cache(model).close()
    del Spy.position_bias
    try:
        with pytest.raises(UnsupportedModelError, match="does not say that it follows such a bias"):
            policy.cache(model)
    finally:
        Spy.position_bias = True
    assert not spy.shown


def test_flex_attention_is_refused():
    model = tiny_architecture("inkling_text", attn_implementation="flex_attention")
    with pytest.raises(UnsupportedModelError, match="flex_attention cannot take"):
        small_policy("snapkv").cache(model)


def test_a_bias_of_another_making_is_refused_before_anything_is_written(eager, monkeypatch):
    cache = small_policy("snapkv").cache(eager)
    eager(input_ids=tokens(0), past_key_values=cache)
    made = eager.model.layers[1].self_attn.rel_logits_proj
    whole = made.forward
    monkeypatch.setattr(made, "forward", lambda *args: whole(*args)[..., -9:])
    with pytest.raises(UnsupportedModelError, match="gives its attention a position bias of"):
        eager(input_ids=tokens(1, 4), past_key_values=cache)
