"""Choices of the standard library: the beginning of a help topic, and titles."""

from __future__ import annotations

from pydoc_data.topics import topics

import pytest

from kvpolicy.errors import InvalidValueError
from kvpolicy.evaluation.tasks.topics import QUESTION, TopicsTask
from kvpolicy.testing.tokenizers import byte_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer()


def test_one_of_the_titles_is_that_of_the_text(tokenizer):
    for sample in TopicsTask(length=100, num_samples=8).samples(tokenizer):
        title, _, text = topics[sample.name].strip().partition("\n")
        assert sample.answers == (f" {title}",)
        assert sample.answers[0] in sample.choices
        assert len(set(sample.choices)) == 4
        assert sample.question == QUESTION
        assert sample.context in text
        assert len(tokenizer(sample.context, add_special_tokens=False)["input_ids"]) == 100


def test_fewer_samples_are_the_first_of_more_and_a_seed_draws_others(tokenizer):
    few, more, other = (
        list(TopicsTask(length=100, num_samples=count, seed=seed).samples(tokenizer))
        for count, seed in ((3, 0), (8, 0), (8, 1))
    )
    assert more[:3] == few
    assert [each.name for each in other] != [each.name for each in more]


def test_the_right_title_is_at_any_place(tokenizer):
    samples = TopicsTask(length=50, num_samples=30).samples(tokenizer)
    assert {each.choices.index(each.answers[0]) for each in samples} == {0, 1, 2, 3}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": 10**6, "num_samples": 1}, "0 help topics have 1000000 tokens"),
        ({"choices": 10**4}, "fewer than choices 10000"),
    ],
)
def test_what_cannot_be_drawn_is_refused(tokenizer, options, message):
    with pytest.raises(InvalidValueError, match=message):
        list(TopicsTask(**options).samples(tokenizer))


def test_a_choice_needs_two(tokenizer):
    with pytest.raises(InvalidValueError, match="choices"):
        TopicsTask(choices=1)
