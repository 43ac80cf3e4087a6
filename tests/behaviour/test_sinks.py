"""Models that have learned a sink for every query head: one more logit of each softmax."""

import pytest
import torch
from transformers import AutoModelForCausalLM

import kvpolicy
from kvpolicy.cache.attention import uneven
from kvpolicy.errors import CacheStateError, UnsupportedModelError
from kvpolicy.exactness.architectures import tiny_architecture, tiny_config
from kvpolicy.exactness.usages import USAGES, small_policy, tokens
from kvpolicy.testing.models import tiny_model

LIMIT = 1e-4
MODELS = ("gpt_oss", "flint", "granite_swa", "granitemoe_swa", "mimo_v2_flash")
"""The last has sinks only in its window layers, which stay transformers' own."""
CASES = [(model, recipe) for model in MODELS for recipe in ("restkv", "adakv")]
CASES += [("gpt_oss", recipe) for recipe in ("h2o", "snapkv", "tova", "rkv")]


@pytest.fixture(autouse=True)
def _quiet():
    with torch.no_grad():
        yield


def with_sinks(model):
    """Give a model sinks that matter: some types begin with zeros, others with little more."""
    noise = torch.Generator().manual_seed(5)
    found = [each for name, each in model.named_parameters() if name.endswith(".sinks")]
    for sinks in found:
        sinks.copy_(torch.randn(sinks.shape, generator=noise) * 2 + 2)
    assert found
    return model


def sunk(model_type="gpt_oss"):
    return with_sinks(tiny_architecture(model_type, attn_implementation="eager"))


def sinks_of(model):
    """The sinks of each layer that a policy has: those without a window."""
    kinds = zip(model.model.layers, model.config.layer_types, strict=True)
    return [layer.self_attn.sinks for layer, kind in kinds if kind == "full_attention"]


@pytest.mark.sampled(23, "model_type", "recipe", "usage")
@pytest.mark.parametrize("usage", USAGES)
@pytest.mark.parametrize(("model_type", "recipe"), CASES)
def test_every_usage_is_exact(model_type, recipe, usage):
    if usage == "after crop":
        with pytest.raises(CacheStateError, match="holds only its sliding window"):
            USAGES[usage](sunk(model_type), small_policy(recipe))
    else:
        assert USAGES[usage](sunk(model_type), small_policy(recipe)) <= LIMIT


def test_a_model_without_windows_can_go_back():
    config = tiny_config("gpt_oss")
    config.layer_types = ["full_attention"] * config.num_hidden_layers
    torch.manual_seed(0)
    model = with_sinks(AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval())
    for recipe in ("restkv", "adakv"):
        assert USAGES["after crop"](model, small_policy(recipe)) <= LIMIT


@pytest.mark.parametrize(("recipe", "usage"), [("adakv", "one prompt"), ("adakv", "five turns")])
def test_the_yardstick_notices_where_a_sink_is_left_out(recipe, usage, monkeypatch):
    whole = uneven.ragged_attention

    def without(*args, sinks, **options):
        return whole(*args, **options)

    monkeypatch.setattr(uneven, "ragged_attention", without)
    assert USAGES[usage](sunk(), small_policy(recipe)) > 0.1


class SeenSinks:
    """Scores like SnapKV, and remembers what it was shown."""

    window = 8

    def __init__(self):
        self.observations = []

    def score(self, observation, reduce):
        self.observations.append(observation)
        return observation.folded_attention(reduce)


def test_heads_that_are_shown_alone_have_their_own_sinks():
    model, scorer = sunk(), SeenSinks()
    policy = kvpolicy.compose(scorer=scorer, allocator="adakv", budget=24)
    cache = policy.cache(model)
    model(input_ids=tokens(0), past_key_values=cache)
    together = len(scorer.observations)
    model(input_ids=tokens(1, 20), past_key_values=cache)

    assert [each.queries.shape[1] for each in scorer.observations[together:]] == [2] * 4
    for each in scorer.observations:
        sinks = sinks_of(model)[each.layer]
        shown = slice(each.first_head, each.first_head + each.queries.shape[1])
        assert torch.equal(each.sink_logits, sinks[shown])
    assert {each.first_head for each in scorer.observations[together:]} == {0, 2}


@pytest.mark.parametrize("recipe", ["restkv", "adakv", "snapkv", "h2o"])
def test_what_is_kept_goes_by_the_sinks(recipe):
    model = sunk()

    def kept():
        cache = small_policy(recipe).cache(model)
        model(input_ids=tokens(0), past_key_values=cache)
        return cache.positions[model.config.layer_types.index("full_attention")]

    plain = kept()
    sinks_of(model)[0][::2] += 12
    assert not torch.equal(kept(), plain)


def test_sparse_prefill_is_refused_by_name_in_the_first_forward():
    model = sunk()
    cache = small_policy("snapkv").cache(model, prefill="ashape")
    with pytest.raises(
        UnsupportedModelError, match=r"learned attention sinks \(s_aux\).*prefill=None"
    ):
        model(input_ids=tokens(0, 5), past_key_values=cache)


@pytest.mark.parametrize("name", ["position_bias", "indices", "block_indices"])
def test_other_additions_to_the_softmax_are_refused_by_name(name):
    model = tiny_model("llama", attn_implementation="eager")
    cache = small_policy("snapkv").cache(model)
    with pytest.raises(UnsupportedModelError, match=f"'{name}'\\. Policies are not shown it"):
        model(input_ids=tokens(0), past_key_values=cache, **{name: torch.zeros(4)})


@pytest.mark.parametrize("name", ["s_aux", "sinks"])
@pytest.mark.parametrize("shape", [(2,), (1, 4, 60, 1)])
def test_sinks_that_are_not_one_for_each_head_are_refused_by_name(name, shape):
    model = tiny_model("llama", attn_implementation="eager")
    cache = small_policy("snapkv").cache(model)
    with pytest.raises(UnsupportedModelError, match=rf"'{name}' of .* each of the 4 query heads"):
        model(input_ids=tokens(0), past_key_values=cache, **{name: torch.zeros(shape)})
