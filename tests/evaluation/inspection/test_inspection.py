"""A prompt with and without a policy: what is held, and why an answer is wrong."""

from __future__ import annotations

import pytest
import torch

import kvpolicy


def test_what_is_held_is_what_the_cache_holds(inspected, needle_model):
    found = inspected("snapkv")
    with torch.no_grad(), kvpolicy.recipe("snapkv", budget=40).cache(needle_model[0]) as cache:
        needle_model[0](found.prompt.ids, past_key_values=cache)
        positions = [layer[0] for layer in cache.positions]
    for held, expected in zip(found.held, positions, strict=True):
        assert [row.nonzero()[:, 0].tolist() for row in held] == expected.tolist()
    assert found.shares.sum() == pytest.approx(40)


def test_a_right_answer_has_no_cause(inspected):
    found = inspected("snapkv", number=0)
    assert (found.right, found.full_right, found.cause) == (True, True, None)
    assert found.text == found.full_text


def test_missing_tokens_are_named_and_keeping_them_helps(inspected):
    found = inspected("snapkv")
    assert (found.right, found.full_right) == (False, True)
    cause = found.cause
    assert cause.verdict == "missing"
    assert cause.missing > 0.9
    assert cause.attention < 0.01 < cause.full_attention
    assert cause.right_if_kept


def test_tokens_that_are_broken_apart_are_named(inspected):
    cause = inspected("snapkv", number=2).cause
    assert cause.verdict == "broken"
    assert cause.broken > cause.missing
    assert cause.missing + cause.broken + cause.whole == pytest.approx(1)


def test_tokens_that_are_kept_are_outweighed(inspected, questions):
    first_words = " ".join(questions[1].text.split()[:3])
    found = inspected("snapkv", needed=first_words, sinks=4)
    assert found.right is False
    assert found.cause.whole == pytest.approx(1)
    assert found.cause.verdict == "outweighed"
    assert found.cause.right_if_kept is False


def test_a_policy_that_evicts_at_each_token_is_not_tried_again(inspected):
    cause = inspected("streamingllm").cause
    assert (cause.verdict, cause.missing, cause.right_if_kept) == ("missing", 1, None)


def test_attention_over_uneven_heads_is_unknown(inspected):
    cause = inspected("adakv").cause
    assert cause.attention is None
    assert cause.full_attention > 0


def test_what_the_full_cache_gets_wrong_is_not_put_on_eviction(inspected):
    assert inspected("snapkv", answer="another answer").cause.verdict == "full"


def test_an_answer_that_stands_nowhere_has_no_needed_tokens(inspected, questions, needle_model):
    found = inspected("snapkv", needed="stands nowhere")
    assert found.needed == ()
    assert found.cause.verdict == "unknown"


def test_without_an_answer_nothing_is_judged(needle_model, questions, inspected):
    found = inspected("snapkv", answer="")
    assert found.cause is None
    assert found.text
