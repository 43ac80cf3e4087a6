"""Decoding is greedy and that of `generate`; what the cache holds is counted."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache

import kvpolicy
from kvpolicy.evaluation.caches import opened_cache
from kvpolicy.evaluation.runs.prompt import Prompt
from kvpolicy.evaluation.runs.reading import Reading, ends_of, held_back
from kvpolicy.testing import tiny_model

IDS = torch.arange(1, 61)[None]
NONE = torch.empty((1, 0), dtype=torch.long)
POLICIES = {
    "full": None,
    "snapkv": kvpolicy.recipe("snapkv", budget=40),
    "h2o": kvpolicy.recipe("h2o", budget=24),
}


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.inference_mode():
        yield


def prompt(split=60):
    return Prompt(context=IDS[:, :split], question=IDS[:, split:])


@pytest.mark.parametrize("name", POLICIES)
def test_it_writes_what_generate_writes(model, name):
    with opened_cache(model, POLICIES[name]) as cache:
        found = Reading(model, cache).write(prompt(), limit=12, ends=())
    with opened_cache(model, POLICIES[name]) as cache:
        said = model.generate(
            IDS,
            attention_mask=torch.ones_like(IDS),
            past_key_values=cache,
            max_new_tokens=12,
            do_sample=False,
        )
    assert found == said[0, 60:].tolist()


def test_a_token_that_ends_the_text_is_not_written(model):
    whole = Reading(model, DynamicCache(config=model.config)).write(prompt(), limit=8, ends=())
    end = whole[3]
    cut = Reading(model, DynamicCache(config=model.config)).write(prompt(), limit=8, ends={end})
    assert cut == whole[: whole.index(end)]


def test_the_first_tokens_may_be_kept_from_ending_the_text(model):
    whole = Reading(model, DynamicCache(config=model.config)).write(prompt(), limit=8, ends=())
    reading = Reading(model, DynamicCache(config=model.config))
    found = reading.write(prompt(), limit=8, ends={whole[0]}, least=1)
    assert found
    assert found[0] != whole[0]


def test_the_loss_is_that_of_one_forward(model):
    answer = [5, 9, 3, 77]
    reading = Reading(model, DynamicCache(config=model.config))
    loss = reading.loss(reading.ask(prompt()), answer)
    logits = model(torch.cat([IDS, torch.tensor([answer])], dim=1)).logits[0, 59:63].double()
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor(answer), reduction="sum")
    assert loss == pytest.approx(float(expected), rel=1e-5)


def test_a_question_outside_is_asked_of_what_the_context_left(model):
    policy = kvpolicy.recipe("snapkv", budget=40)
    with policy.cache(model) as cache:
        Reading(model, cache).ask(prompt(50))
        held = cache.positions[0][0, 0].tolist()
    assert len(held) == 50
    # The window of the context is kept, and the question is not evicted.
    assert held[-42:] == list(range(18, 60))


def test_a_full_cache_has_the_footprint_of_a_triangle(model):
    reading = Reading(model, DynamicCache(config=model.config))
    reading.write(prompt(), limit=3, ends=())
    layers = model.config.num_hidden_layers
    assert reading.footprint == reading.full_footprint == layers * 62 * 63 // 2


def test_an_evicted_cache_has_a_smaller_one(model):
    with kvpolicy.recipe("snapkv", budget=40).cache(model) as cache:
        reading = Reading(model, cache)
        reading.write(prompt(), limit=3, ends=())
    layers = model.config.num_hidden_layers
    assert reading.footprint == layers * (60 * 61 // 2 + 41 + 42)
    assert reading.full_footprint == layers * 62 * 63 // 2


def test_the_times_are_one_to_the_first_token_and_one_for_each_later(model):
    reading = Reading(model, DynamicCache(config=model.config))
    reading.write(prompt(), limit=5, ends=())
    assert reading.first > 0
    assert len(reading.steps) == 4


def test_the_last_token_is_held_back_where_nothing_is_asked_after_the_context():
    assert held_back(prompt()).context.shape == (1, 59)
    assert held_back(prompt()).ids == prompt().ids
    assert held_back(prompt(50)).context.shape == (1, 50)


def test_a_policy_shows_in_a_single_token_only_if_the_last_one_is_held_back(model):
    def first(policy, asked):
        with opened_cache(model, policy) as cache:
            return Reading(model, cache).ask(asked)

    policy = kvpolicy.recipe("streamingllm", budget=8)
    torch.testing.assert_close(first(policy, prompt()), first(None, prompt()))
    assert not torch.allclose(
        first(policy, held_back(prompt())), first(None, held_back(prompt())), atol=1e-2
    )


def test_a_text_ends_by_the_tokens_of_the_model_and_of_the_tokenizer(tokenizer):
    model = tiny_model()
    assert ends_of(model, tokenizer) == {1}
    model.generation_config.eos_token_id = [3, 4]
    assert ends_of(model, tokenizer) == {1, 3, 4}
