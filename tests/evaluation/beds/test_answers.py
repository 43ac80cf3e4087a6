"""Answers are counted as greedy decoding gives them, and nobody holds more than the budget."""

from pathlib import Path
from statistics import fmean

import attrs
import pytest

import kvpolicy
from kvpolicy.errors import InvalidValueError, KvpolicyError
from kvpolicy.evaluation import needle
from kvpolicy.evaluation.beds.answers import answered
from kvpolicy.evaluation.beds.prompts import needle_beds
from kvpolicy.evaluation.caches import opened_cache
from kvpolicy.evaluation.measures.reconstruction import token_errors
from kvpolicy.evaluation.measures.text import exact_match
from kvpolicy.evaluation.needle.reader import Reader
from kvpolicy.huggingface.cache_argument import handed


@pytest.fixture(scope="module")
def beds():
    """The question is visible in the first, and hidden in the second."""
    return list(needle_beds(4))


@pytest.mark.parametrize("name", [None, "snapkv", "streamingllm"])
def test_they_are_those_of_generate(beds, name):
    bed = beds[0]
    policy = name and kvpolicy.recipe(name, budget=40)
    _, tokenizer = needle.load()
    asked = needle.generate_prompts(tokens=512, facts=32, count=4, seed=2)
    with opened_cache(bed.model, policy) as cache:
        said = Reader(bed.model, tokenizer).answer(asked, cache)
    expected = [exact_match(mine, each.answer) == 1 for mine, each in zip(said, asked, strict=True)]
    assert list(answered(policy, bed.recordings[0], bed.readers[0], 3).right) == expected


def test_with_the_question_hidden_only_the_answer_counts(beds):
    found = answered(None, beds[1].recordings[0], beds[1].readers[0], beds[1].answer)
    assert found.share == 1


def test_what_is_held_is_the_budget(beds):
    policies = [kvpolicy.recipe(name, budget=64) for name in ("restkv", "layerdefensivekv")]
    found = [answered(each, beds[0].recordings[0], beds[0].readers[0], 3) for each in policies]
    assert [each.held for each in found] == [64, 64]
    assert found[0].nbytes >= 4 * 4 * 64 * 2 * 32 * 4  # layers, heads, positions, rows, float32


def test_padding_of_uneven_heads_is_not_held():
    """Prompts of this batch divide the budget of the model differently among its layers."""
    folder = Path(__file__).parents[3] / "examples" / "needle-model" / "chained"
    _, bed = needle_beds(8, folder)
    policy = kvpolicy.recipe("layerdefensivekv", budget=40)
    with policy.cache(bed.model) as cache:
        bed.model(bed.recordings[0].prompt, **handed(cache, to=bed.model))
        slots = fmean(float(layer.held) for layer in cache.policy_layers)
    assert slots > 41
    assert answered(policy, bed.recordings[0], bed.readers[0], 3).held == pytest.approx(40)


def test_a_policy_that_holds_more_is_refused(beds):
    policy = kvpolicy.recipe("snapkv", budget=64)
    more = attrs.evolve(policy, budget=32)

    class Looser:
        """Says a smaller budget than it has."""

        budget = more.budget

        def cache(self, model, **options):
            return policy.cache(model, **options)

    with pytest.raises(KvpolicyError, match=r"holds 64\.00 positions .* budget of 32"):
        answered(Looser(), beds[0].recordings[0], beds[0].readers[0], 3)


@pytest.mark.parametrize("name", ["restkv", "tova"])
def test_errors_are_those_of_token_errors(beds, name):
    policy = kvpolicy.recipe(name, budget=40)
    for bed in beds:
        found = answered(policy, bed.recordings[0], bed.readers[0], 3).errors
        assert (
            list(found) == token_errors(bed.model, policy, bed.recordings[0]).mean((0, 2)).tolist()
        )


def test_prompts_that_ask_for_nothing_are_refused(beds):
    with pytest.raises(InvalidValueError, match="ask for no answer"):
        answered(None, beds[0].recordings[0], beds[0].readers[0], 0)
