"""A dialogue is read turn by turn, and the agent's turns are told apart."""

from __future__ import annotations

import attrs
import pytest
import torch

import kvpolicy
from kvpolicy.errors import InvalidValueError
from kvpolicy.evaluation.caches import opened_cache
from kvpolicy.evaluation.measures.catalogue import METRICS
from kvpolicy.evaluation.runs.answer import answered
from kvpolicy.evaluation.runs.dialogue import dialogue_prompt
from kvpolicy.evaluation.runs.prompt import PromptFormat
from kvpolicy.evaluation.runs.reading import Reading
from kvpolicy.task import Sample

MESSAGES = (
    {"role": "user", "content": "what colour is the w1 ?"},
    {"role": "assistant", "content": "the w1 is red"},
    {"role": "user", "content": "is the w2 blue ?"},
    {"role": "assistant", "content": "green"},
    {"role": "user", "content": "w3"},
)
SAMPLE = Sample(name="7", messages=MESSAGES)


def words(tokenizer, ids):
    return [tokenizer.decode(each) for each in ids]


def scored(tokenizer, prompt):
    return [tokenizer.decode(prompt.ids[start:end]) for start, end in prompt.scored]


@pytest.fixture
def style(tokenizer):
    return PromptFormat(tokenizer=tokenizer)


@pytest.mark.parametrize("chat", [False, True])
def test_the_agents_words_are_told_apart(style, tokenizer, chat):
    prompt = dialogue_prompt(attrs.evolve(style, chat=chat), SAMPLE)
    assert scored(tokenizer, prompt) == ["the w1 is red", "green"]
    assert prompt.question.shape == (1, 0)


def test_without_a_template_the_turns_are_lines(tokenizer, style):
    tokenizer.add_tokens(["User:", "Agent:"])
    prompt = dialogue_prompt(style, SAMPLE)
    text = tokenizer.decode(prompt.ids)
    assert text.startswith("User: what colour is the w1 ? Agent: the w1 is red User: is the")


def test_a_context_stands_in_front_of_the_first_turn(style, tokenizer):
    plain, behind = (
        dialogue_prompt(attrs.evolve(style, chat=True), attrs.evolve(SAMPLE, context=context))
        for context in ("", "w5 w6")
    )
    text = tokenizer.decode(behind.ids)
    assert text.startswith("user : w5 w6 what colour")
    assert scored(tokenizer, behind) == scored(tokenizer, plain)


def test_a_long_dialogue_loses_its_end(style, tokenizer):
    prompt = dialogue_prompt(attrs.evolve(style, chat=True, longest=12), SAMPLE)
    assert prompt.tokens == 12
    assert scored(tokenizer, prompt) == ["the"]


@pytest.mark.parametrize(
    ("messages", "template", "sentence"),
    [
        (MESSAGES[:1], None, "sample '7' has no turn of an agent"),
        (MESSAGES, "{{ messages[-1].content }}", "does not write turn 2 of sample '7' behind"),
        (MESSAGES, "", "does not write turn 2"),
    ],
)
def test_what_is_no_dialogue_is_said(style, tokenizer, messages, template, sentence):
    tokenizer.chat_template = template
    chat = template is not None
    with pytest.raises(InvalidValueError, match=sentence):
        dialogue_prompt(attrs.evolve(style, chat=chat), Sample(name="7", messages=messages))


@pytest.fixture
def long(text):
    """Three rounds, each of sixty words and a short answer."""
    turns = [("user", text), ("assistant", "red blue"), ("user", text), ("assistant", "w1")]
    turns += [("user", text), ("assistant", "green the w2")]
    return tuple({"role": role, "content": content} for role, content in turns)


@pytest.fixture
def answer(model, tokenizer, style, long):
    def answer(policy=None):
        sample = Sample(name="1", messages=long)
        prompt = dialogue_prompt(attrs.evolve(style, chat=True), sample)
        metric = METRICS["dialogue_perplexity"]
        return answered(model, tokenizer, prompt, sample, metric, policy), prompt

    return answer


def test_with_the_full_cache_the_loss_is_that_of_one_forward(answer, model):
    found, prompt = answer()
    with torch.inference_mode():
        log = model(prompt.context).logits[0].log_softmax(-1)
    places = [place for start, end in prompt.scored for place in range(start, end)]
    expected = -sum(float(log[place - 1, prompt.ids[place]]) for place in places) / len(places)
    assert found["score"] == pytest.approx(expected, rel=1e-4)
    assert found["weight"] == len(places) == 6


def test_the_cache_is_evicted_before_each_agents_turn(answer, model):
    policy = kvpolicy.recipe("snapkv", budget=40)
    found, prompt = answer(policy)
    held = []
    with torch.inference_mode(), opened_cache(model, policy) as cache:
        reading = Reading(model, cache)
        read = Reading.read
        reading.read = lambda ids: (
            held.append((ids.shape[1], cache.report().layers[0].held)),
            read(reading, ids),
        )[1]
        loss, count = reading.converse(prompt)
    assert (loss / count, count) == (found["score"], found["weight"])
    # A turn but its last token at once, and then token by token; the cache before each forward.
    starts = [(tokens, before) for tokens, before in held if tokens > 1]
    assert [before for _, before in starts] == [0, 40 + 2, 40 + 1]
    assert sum(tokens for tokens, _ in held) == prompt.scored[-1][1] - 1


def test_an_evicted_dialogue_has_another_perplexity_unless_it_fits(answer):
    full, evicted, whole = (
        answer(policy)[0]
        for policy in (
            None,
            kvpolicy.recipe("snapkv", budget=40),
            kvpolicy.recipe("snapkv", budget=999),
        )
    )
    assert abs(evicted["score"] - full["score"]) > 1e-3
    assert whole["score"] == pytest.approx(full["score"], abs=1e-5)
