"""A prompt as tokens with their pieces of the text."""

from __future__ import annotations

import pytest
import torch

from kvpolicy.errors import InvalidValueError
from kvpolicy.evaluation.inspection.prompt import TokenizedPrompt, tokenized


def test_the_pieces_are_the_text(needle_model, questions):
    _, tokenizer = needle_model
    found = tokenized(tokenizer, questions[0].text)
    assert found.ids.tolist() == tokenizer([questions[0].text])["input_ids"]
    assert "".join(found.pieces) == "<s>" + questions[0].text


def test_the_answer_stands_where_the_generator_put_it(needle_model, questions):
    _, tokenizer = needle_model
    for question in questions:
        [place] = tokenized(tokenizer, question.text).places_of(question.answer)
        assert place == question.answer_positions


def test_every_place_is_found_whatever_the_case_of_letters():
    pieces = ("The ", "Red", " f", "ox sees a re", "d fox", ".")
    prompt = TokenizedPrompt(ids=torch.zeros(1, 6).long(), pieces=pieces)
    assert prompt.places_of("red FOX") == [range(1, 4), range(3, 5)]
    assert prompt.places_of("blue") == prompt.places_of(" ") == []


def test_a_chat_template_that_there_is_none_of_is_an_error(needle_model):
    with pytest.raises(InvalidValueError, match="has no chat template"):
        tokenized(needle_model[1], "text", chat=True)


def test_with_a_chat_template_the_prompt_is_a_turn(needle_model, monkeypatch):
    _, tokenizer = needle_model
    monkeypatch.setattr(
        tokenizer, "chat_template", "{% for m in messages %}the {{ m.content }}{% endfor %} ."
    )
    found = tokenized(tokenizer, "cow", chat=True)
    assert "".join(found.pieces) == "the cow ."


def test_a_tokenizer_that_does_not_say_where_tokens_stand_is_refused(needle_model, monkeypatch):
    _, tokenizer = needle_model
    monkeypatch.setattr(type(tokenizer), "is_fast", False)
    with pytest.raises(InvalidValueError, match=r"does not say where its tokens stand"):
        tokenized(tokenizer, "text")
