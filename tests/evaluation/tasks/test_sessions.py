"""Dialogues of the standard library: what is typed and printed, in whole turns."""

from __future__ import annotations

import pytest

from kvpolicy.errors import InvalidValueError
from kvpolicy.evaluation.evaluate import evaluate
from kvpolicy.evaluation.tasks.sessions import REQUEST, SessionsTask
from kvpolicy.testing import tiny_model
from kvpolicy.testing.tokenizers import byte_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer()


def test_a_dialogue_is_of_whole_turns_that_fit(tokenizer):
    for sample in SessionsTask(length=200, num_samples=6).samples(tokenizer):
        roles = [each["role"] for each in sample.messages]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
        assert sample.messages[0]["content"].startswith(REQUEST)
        text = "".join(f"{each['content']}\n" for each in sample.messages)
        assert 0 < len(tokenizer(text, add_special_tokens=False)["input_ids"]) <= 200


def test_the_agent_says_what_the_interpreter_prints(tokenizer):
    samples = SessionsTask(length=300, num_samples=8).samples(tokenizer)
    turns = [message["content"] for sample in samples for message in sample.messages]
    assert not any(">>>" in turn for turn in turns)
    assert all(turn == turn.strip() != "" for turn in turns)


def test_fewer_samples_are_the_first_of_more(tokenizer):
    few, more = (
        [each.name for each in SessionsTask(length=200, num_samples=count).samples(tokenizer)]
        for count in (2, 6)
    )
    assert more[:2] == few
    assert len(set(more)) == 6


def test_sessions_that_are_too_long_are_refused(tokenizer):
    with pytest.raises(InvalidValueError, match="0 modules of the standard library have sessions"):
        list(SessionsTask(length=10**6, num_samples=1).samples(tokenizer))


def test_a_policy_evicts_in_a_session(tokenizer):
    task = SessionsTask(length=120, num_samples=1)
    found = evaluate(
        tiny_model(vocab_size=len(tokenizer)), tokenizer, tasks=[task], recipes=["snapkv"],
        budgets=[40], references=False,
    )  # fmt: skip
    assert [row.error for row in found.rows] == [None, None]
    full, snapkv = found.rows
    assert snapkv.positions < full.positions
