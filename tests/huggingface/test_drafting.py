"""Assisted decoding and prompt look-up give the text of greedy decoding under the same policy."""

from copy import deepcopy

import pytest
import torch
from transformers import Cache, GenerationConfig

from kvpolicy.errors import CacheStateError, UnsupportedModelError
from kvpolicy.exactness.architectures import tiny_architecture
from kvpolicy.exactness.usages import small_policy, tokens
from kvpolicy.exactness.usages.inputs import generate
from kvpolicy.testing.models import tiny_model

pytestmark = pytest.mark.skipif(
    not hasattr(Cache, "activate_past_recording"),
    reason="drafts are refused here: this transformers has no cache that takes tokens back",
)
# A repeated prompt gives the look-up something to find.
PROMPT = tokens(1, 30).repeat(1, 2)
MODEL = tiny_model("llama")


def two_turns(model, cache, **options):
    answered = generate(model, cache, PROMPT, max_new_tokens=10, **options)
    return generate(model, cache, torch.cat([answered, tokens(3, 9)], 1), **options)


def assert_as_greedy(model, policy, **options):
    """Compare text and positions; return how many forwards the model made."""
    greedy, cache, forwards = policy.cache(model), policy.cache(model), []
    expected = two_turns(model, greedy)
    hook = model.register_forward_pre_hook(lambda *_: forwards.append(1))
    found = two_turns(model, cache, **options)
    hook.remove()
    assert found.tolist() == expected.tolist()
    assert cache.get_seq_length() == greedy.get_seq_length()
    for ours, theirs in zip(cache.positions, greedy.positions, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    assert cache.policy_layers[0].held < cache.get_seq_length()
    return len(forwards)


@pytest.mark.parametrize(
    ("recipe", "changes"),
    [
        ("restkv", {}),
        ("adakv", {}),
        ("pyramidkv", {}),
        ("snapkv", {"per_turn": True}),
        ("snapkv", {"budget": 0.4, "recent": 0}),
    ],
)
def test_prompt_lookup_equals_greedy_decoding(recipe, changes):
    assert_as_greedy(MODEL, small_policy(recipe, **changes), prompt_lookup_num_tokens=3)


@pytest.mark.parametrize("family", ["gemma3_text", "deepseek_v3"])
def test_windows_and_latents_go_back_too(family):
    model = tiny_architecture(family)
    assert_as_greedy(model, small_policy("snapkv"), prompt_lookup_num_tokens=3)


def test_a_draft_model_may_have_a_policy_of_its_own():
    draft = tiny_model("llama")
    with small_policy("snapkv").applied(draft) as applied:
        forwards = assert_as_greedy(MODEL, small_policy("restkv"), assistant_model=draft)
    assert forwards < 10 + 8, "no draft was accepted"
    assert applied.reports
    assert all(layer.held < layer.seen for layer in applied.reports[0].layers)


def test_a_policy_that_is_applied_serves_drafts():
    expected = generate(MODEL, small_policy("snapkv").cache(MODEL), PROMPT)
    with small_policy("snapkv").applied(MODEL) as applied:
        found = generate(MODEL, None, PROMPT, prompt_lookup_num_tokens=3)
    assert found.tolist() == expected.tolist()
    assert applied.reports[0].layers[0].held < 60


def test_an_allocator_that_goes_layer_by_layer_serves_drafts():
    policy = small_policy("snapkv", allocator={"name": "carried", "level": 0.1})
    assert_as_greedy(MODEL, policy, prompt_lookup_num_tokens=3)


def test_a_layer_evicts_between_the_prompt_and_the_drafts():
    cache, held = small_policy("snapkv").cache(MODEL), []
    hook = MODEL.model.layers[1].register_forward_pre_hook(
        lambda *_: held.append(cache.policy_layers[0].held)
    )
    generate(MODEL, cache, PROMPT, prompt_lookup_num_tokens=3, max_new_tokens=6)
    hook.remove()
    assert held[0] in (25, 26, 27)


@pytest.mark.parametrize(
    ("recipe", "changes", "message"),
    [
        ("h2o", {}, "every=1 evicts while decoding"),
        ("h2o", {"every": None}, "scorer 'h2o' .* has learned from them"),
        ("layerdefensivekv", {}, "compares all layers first"),
        ("expectedattention", {}, "rotary positions are not followed apart"),
        ("snapkv", {"slot_positions": True}, "slot_positions=False"),
    ],
)
def test_policies_that_cannot_take_drafts_back_are_refused_before_any_work(
    recipe, changes, message
):
    cache = small_policy(recipe, **changes).cache(MODEL)
    with pytest.raises(UnsupportedModelError, match=message):
        generate(MODEL, cache, PROMPT, prompt_lookup_num_tokens=3)
    assert cache.get_seq_length() == 0
    generate(MODEL, cache, PROMPT)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attention_mask": (torch.arange(60) > 3).long()[None]}, "without padding"),
        ({"generation_config": GenerationConfig(use_mtp=True)}, "use_mtp"),
        ({"assistant_early_exit": 1}, "assistant_early_exit"),
    ],
)
def test_drafts_that_are_not_served_are_refused_before_any_work(options, message):
    cache, drafts = small_policy("snapkv").cache(MODEL), {"prompt_lookup_num_tokens": 3}
    with pytest.raises(UnsupportedModelError, match=message):
        generate(MODEL, cache, PROMPT, **drafts | options)
    assert cache.get_seq_length() == 0


def test_embeddings_do_not_say_where_the_prompt_ends():
    cache = small_policy("snapkv").cache(MODEL)
    with pytest.raises(UnsupportedModelError, match="where the prompt ends"):
        MODEL.generate(
            inputs_embeds=MODEL.get_input_embeddings()(PROMPT),
            past_key_values=cache,
            prompt_lookup_num_tokens=3,
            max_new_tokens=2,
        )
    with pytest.raises(UnsupportedModelError, match="where the prompt ends"):
        cache.activate_past_recording()


def test_a_failure_among_drafts_is_not_gone_on_from():
    cache, forwards = small_policy("snapkv").cache(MODEL), []

    def fail(*_):
        forwards.append(1)
        if len(forwards) == 2:
            raise KeyboardInterrupt

    hook = MODEL.register_forward_pre_hook(fail)
    with pytest.raises(KeyboardInterrupt):
        generate(MODEL, cache, PROMPT, prompt_lookup_num_tokens=3)
    hook.remove()
    with pytest.raises(CacheStateError, match="KeyboardInterrupt"):
        MODEL(input_ids=tokens(3, 1), past_key_values=cache)
    cache.reset()
    two_turns(MODEL, cache)


def test_after_drafts_a_forward_of_many_tokens_ends_a_prompt_again():
    cache = small_policy("snapkv").cache(MODEL)
    generate(MODEL, cache, PROMPT, prompt_lookup_num_tokens=3)
    MODEL(input_ids=tokens(3, 30), past_key_values=cache)
    assert cache.policy_layers[0].held == 24
    twin = deepcopy(cache)
    assert twin.session.drafts is not cache.session.drafts
