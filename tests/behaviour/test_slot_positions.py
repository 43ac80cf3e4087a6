"""Renumbered slots: rotary positions without gaps, as if what is held were all there ever was."""

import attrs
import pytest
import torch

import kvpolicy
from kvpolicy.errors import UnsupportedModelError
from kvpolicy.exactness.forwards import recorded
from kvpolicy.exactness.replay import max_logit_difference
from kvpolicy.exactness.usages import USAGES, small_policy, tokens
from kvpolicy.huggingface.model.rotary import rotaries
from kvpolicy.observation.rotary import PlainRotary
from kvpolicy.testing.models import tiny_model

LIMIT = 1e-4


def slots(**settings):
    return small_policy("streamingllm", **{"slot_positions": True} | settings)


@pytest.mark.sampled(8, "settings", "usage")
@pytest.mark.parametrize("usage", USAGES)
@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("llama", {"every": 1}),
        ("mistral", {"every": None}),
        ("qwen3", {"every": 3, "budget": 0.4}),
        ("llama", {"every": 3, "scorer": {"name": "snapkv", "window": 8}, "recent": 8}),
    ],
    ids=str,
)
def test_every_usage_is_exact_at_slot_positions(family, settings, usage):
    assert USAGES[usage](tiny_model(family), slots(**settings)) <= LIMIT


def test_the_yardstick_sees_keys_that_were_not_turned():
    model = tiny_model("llama")
    cache = slots(slot_positions=False, every=1).cache(model)
    with recorded(model, cache) as calls:
        for seed, length in enumerate((60, 5)):
            model(input_ids=tokens(seed, length), past_key_values=cache)

    assert max_logit_difference(model, calls, cache) <= LIMIT
    renumbered = attrs.evolve(cache.policy, slot_positions=True)
    object.__setattr__(cache.session, "policy", renumbered)
    assert max_logit_difference(model, calls, cache) > 100 * LIMIT


def test_a_stream_answers_as_the_tokens_it_holds_would_alone():
    """One layer: then keys depend on their own token only, and the cache can be built anew."""
    model = tiny_model("llama", num_hidden_layers=1)
    cache, ids = slots(budget=24, sinks=4, every=1).cache(model), tokens(0, 200)
    model(input_ids=ids[:, :40], past_key_values=cache)
    for token in ids[:, 40:].split(1, dim=1):
        last = model(input_ids=token, past_key_values=cache).logits[:, -1]
    kvpolicy.restore(model)

    # The last token still saw the one that was evicted after it.
    held = torch.cat([ids[:, :4], ids[:, -21:]], 1)
    alone = model(input_ids=held).logits[:, -1]

    torch.testing.assert_close(last, alone, rtol=0, atol=LIMIT)


def test_true_positions_stay_available():
    model = tiny_model("llama")
    cache = slots(every=1, sinks=4).cache(model)
    model(input_ids=tokens(0), past_key_values=cache)

    assert cache.positions[0][0, 0].tolist() == [*range(4), *range(40, 60)]
    assert cache.get_seq_length() == 60


def test_nothing_drifts_in_half_precision():
    """However often a layer was evicted, a key is turned once from what the model wrote."""
    model = tiny_model("llama", num_hidden_layers=1).bfloat16()
    cache = slots(budget=24, sinks=4, every=1).cache(model)
    model(input_ids=tokens(0, 40), past_key_values=cache)
    sinks = cache.policy_layers[0].keys[:, :, :4].clone()
    for step in range(100):
        model(input_ids=tokens(step, 1), past_key_values=cache)

    assert torch.equal(cache.policy_layers[0].keys[:, :, :4], sinks)


@pytest.mark.parametrize(
    "family", ["llama", "qwen3", "gemma", "gemma3_text", "olmo2", "granite", "phi3"]
)
def test_a_models_own_tables_are_found(family):
    model = tiny_model(family, head_dim=8)
    config = model.config
    layers = [
        at
        for at, kind in enumerate(getattr(config, "layer_types", None) or ["full_attention"] * 2)
        if kind == "full_attention"
    ]

    (rotary, *_) = rotaries(model, config, layers)

    assert rotary is not None
    base = config.rope_parameters.get("full_attention", config.rope_parameters)["rope_theta"]
    places = torch.tensor([0, 7, 4000])
    for found, expected in zip(
        rotary.tables(places), PlainRotary(dim=8, base=base).tables(places), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)


def test_scaled_tables_come_with_norm_one():
    yarn = {
        "rope_type": "yarn",
        "factor": 4.0,
        "rope_theta": 10_000.0,
        "original_max_position_embeddings": 128,
    }
    model = tiny_model("llama", rope_parameters=yarn)
    (rotary, _) = rotaries(model, model.config, [0, 1])

    cosines, sines = rotary.tables(torch.arange(50))
    torch.testing.assert_close(cosines**2 + sines**2, torch.ones(50, 8))
    assert USAGES["one prompt"](model, slots(every=1)) <= LIMIT


def test_tables_that_change_with_the_prompt_are_refused():
    varying = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0}
    model = tiny_model("llama", rope_parameters=varying)

    with pytest.raises(UnsupportedModelError, match=r"slot_positions=True .* slot_positions=False"):
        slots().cache(model)
    assert not model.config._attn_implementation.startswith("kvpolicy")
