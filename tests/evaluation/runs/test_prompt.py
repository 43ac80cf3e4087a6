"""Samples become the same tokens, wherever the question stands."""

from __future__ import annotations

import attrs
import pytest

from kvpolicy.errors import InvalidValueError
from kvpolicy.evaluation.runs.prompt import PromptFormat
from kvpolicy.task import Sample

SAMPLE = Sample(name="7", context="the red w1 w2 w3", question=" what colour ?", cue=" answer :")


def words(tokenizer, ids):
    return tokenizer.decode(ids[0].tolist())


def test_inside_everything_is_evicted_together(tokenizer):
    prompt = PromptFormat(tokenizer=tokenizer).prompt(SAMPLE)
    assert words(tokenizer, prompt.context) == "the red w1 w2 w3 what colour ? answer :"
    assert prompt.question.shape == (1, 0)


def test_outside_the_question_and_the_cue_come_after_the_eviction(tokenizer):
    prompt = PromptFormat(tokenizer=tokenizer, question="outside").prompt(SAMPLE)
    assert words(tokenizer, prompt.context) == "the red w1 w2 w3"
    assert words(tokenizer, prompt.question) == "what colour ? answer :"


def test_a_sample_may_want_its_question_outside(tokenizer):
    form = PromptFormat(tokenizer=tokenizer)
    sample = attrs.evolve(SAMPLE, outside=True)
    assert (form.place_of(SAMPLE), form.place_of(sample)) == ("inside", "outside")
    prompt = form.prompt(sample)
    assert words(tokenizer, prompt.question) == "what colour ? answer :"


@pytest.mark.parametrize("chat", [False, True])
def test_the_tokens_are_the_same_inside_and_outside(tokenizer, chat):
    inside, outside = (
        PromptFormat(tokenizer=tokenizer, chat=chat, question=place).prompt(SAMPLE)
        for place in ("inside", "outside")
    )
    assert inside.ids == outside.ids
    assert inside.tokens == outside.tokens == len(inside.ids)


def test_a_chat_template_stands_around_the_text_and_before_the_cue(tokenizer):
    prompt = PromptFormat(tokenizer=tokenizer, chat=True, question="outside").prompt(SAMPLE)
    assert words(tokenizer, prompt.context) == "user : the red w1 w2 w3"
    assert words(tokenizer, prompt.question) == "what colour ? . model : answer :"


def test_a_sample_may_refuse_the_chat_template(tokenizer):
    sample = Sample(name="1", context="the red", chat=False)
    prompt = PromptFormat(tokenizer=tokenizer, chat=True).prompt(sample)
    assert words(tokenizer, prompt.context) == "the red"


def test_the_last_message_of_a_conversation_is_its_question(tokenizer):
    messages = (
        {"role": "user", "content": "the red"},
        {"role": "model", "content": "w1"},
        {"role": "user", "content": "what colour ?"},
    )
    sample = Sample(name="1", messages=messages)
    prompt = PromptFormat(tokenizer=tokenizer, question="outside").prompt(sample)
    assert words(tokenizer, prompt.context) == "user : the red . model : w1 . user :"
    assert words(tokenizer, prompt.question) == "what colour ? . model :"


def test_a_long_text_is_cut_in_the_middle_before_the_cue(tokenizer):
    sample = Sample(name="1", context=" ".join(f"w{n}" for n in range(50)), cue=" answer :")
    prompt = PromptFormat(tokenizer=tokenizer, longest=6).prompt(sample)
    # As in LongBench the halves are joined without a blank, so two words become an unknown one.
    assert words(tokenizer, prompt.context) == "w0 w1 <s> w48 w49 answer :"


@pytest.mark.parametrize(
    ("sample", "options", "sentence"),
    [
        (Sample(name="7"), {}, "sample '7' is empty"),
        (Sample(name="7", context="red"), {"question": "outside"}, "no question apart from"),
        (
            Sample(name="7", question="what ?"),
            {"question": "outside"},
            "has no context in front of its question",
        ),
        (
            Sample(name="7", context="red " * 9, question="what colour ?"),
            {"question": "outside", "longest": 2},
            "does not stand in its prompt as it was given",
        ),
    ],
)
def test_what_cannot_be_asked_is_said(tokenizer, sample, options, sentence):
    with pytest.raises(InvalidValueError, match=sentence):
        PromptFormat(tokenizer=tokenizer, **options).prompt(sample)


def test_a_chat_needs_a_template(tokenizer):
    tokenizer.chat_template = None
    with pytest.raises(InvalidValueError, match="needs a chat template"):
        PromptFormat(tokenizer=tokenizer, chat=True).prompt(SAMPLE)
