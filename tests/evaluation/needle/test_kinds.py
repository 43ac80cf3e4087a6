"""Texts that tell facts more than once, or ask several questions, for the needle model."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvpolicy.errors import InvalidValueError
from kvpolicy.evaluation import needle
from kvpolicy.evaluation.needle.kinds import EARLIER, KINDS, write

seeds = st.integers(0, 2**32)


def told_in(text):
    """Return the name and the code of each fact, in reading order."""
    words = text.split()
    starts = [place for place, word in enumerate(words) if word == "password"]
    return [(words[at + 1], " ".join(words[at + 2 : at + 5])) for at in starts]


@pytest.fixture(scope="module")
def shipped():
    return needle.load()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tokens", [150, 512])
def test_every_prompt_has_the_length_that_was_asked_for(shipped, kind, tokens):
    _, tokenizer = shipped
    for asked in write(kind, tokens=tokens, facts=8, count=3, seed=1):
        ids = tokenizer(asked.text)["input_ids"]
        assert len(ids) == tokens
        assert tokenizer.unk_token_id not in ids


@given(seed=seeds)
def test_a_repeated_fact_is_told_twice_in_the_same_words(seed):
    [asked] = write("repeated", tokens=200, facts=5, count=1, seed=seed)
    told = told_in(asked.context)
    assert len(told) == 10
    assert {told.count(each) for each in told} == {2}
    assert (asked.question.split()[-1], asked.answer) in told


@given(seed=seeds)
def test_the_code_that_is_told_last_counts(seed):
    [asked] = write("updated", tokens=200, facts=5, count=1, seed=seed)
    told, name = told_in(asked.context), asked.question.split()[-1]
    codes = [code for each, code in told if each == name]
    assert len(codes) == 2
    assert asked.answer == codes[-1]


@given(seed=seeds)
def test_questions_in_a_row_are_about_different_facts_and_the_last_is_open(seed):
    [asked] = write("in_a_row", tokens=200, facts=6, count=1, seed=seed)
    told = dict(told_in(asked.context))
    *answered, last = asked.question.split(" </s> ")
    assert len(answered) == EARLIER
    names = [last.split()[-1]]
    for exchange in answered:
        *_, name, first, second, third = exchange.split()
        assert told[name] == f"{first} {second} {third}"
        names.append(name)
    assert len(set(names)) == EARLIER + 1
    assert asked.answer == told[names[0]]


@pytest.mark.parametrize("kind", KINDS)
def test_equal_seeds_write_equal_prompts(kind):
    options = {"tokens": 200, "facts": 5}
    assert write(kind, **options, count=1, seed=3) == (write(kind, **options, count=3, seed=3))[:1]
    assert write(kind, **options, count=1, seed=3) != write(kind, **options, count=1, seed=4)


def test_facts_and_questions_that_do_not_fit_are_refused():
    with pytest.raises(InvalidValueError, match="20 facts do not fit"):
        write("repeated", tokens=64, facts=10, count=1, seed=0)
    with pytest.raises(InvalidValueError, match="4 questions do not go with 3 facts"):
        write("in_a_row", tokens=200, facts=3, count=1, seed=0)


@pytest.mark.parametrize(("kind", "least"), [("repeated", 3), ("in_a_row", 3), ("updated", 0)])
def test_what_the_full_cache_answers(shipped, kind, least):
    # The model was not trained for codes that change: no number of right answers is promised.
    from kvpolicy.evaluation.evaluate import evaluate

    task = {"name": f"needle_{kind}", "length": 256, "facts": 8}
    [cell] = evaluate(*shipped, recipes=[], tasks=[task], limit=3).cells
    assert cell.errors == 0
    assert cell.estimate.value * 3 >= least
