"""Words of a prompt are found among the tokens of any fast tokenizer."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from kvpolicy.errors import InvalidValueError
from kvpolicy.evaluation import needle
from kvpolicy.evaluation.needle.places import token_places


def test_places_of_whole_words_are_those_of_the_prompt():
    _, tokenizer = needle.load()
    for prompt in needle.generate_prompts(tokens=96, facts=4, count=3, seed=0):
        assert token_places(tokenizer, prompt.text, prompt.needle) == prompt.needle
        places = token_places(tokenizer, prompt.text, prompt.answer_positions)
        assert places == prompt.answer_positions


@pytest.fixture
def letters():
    """A tokenizer of letters, which begins a text with a token of its own."""
    alphabet = {letter: number for number, letter in enumerate("^? .abcdefghijklmnopqrstuvwxyz")}
    made = Tokenizer(models.WordLevel(alphabet, unk_token="?"))
    made.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    made.post_processor = processors.TemplateProcessing(single="^ $0", special_tokens=[("^", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="^", unk_token="?")


def test_a_word_may_be_several_tokens(letters):
    text = "ada alma amber"
    found = token_places(letters, text, range(2, 3))
    assert letters.decode(letters(text)["input_ids"][found.start : found.stop]) == "a l m a"
    assert token_places(letters, text, range(1, 4)) == range(1, len(text) + 1)


def test_a_tokenizer_that_does_not_know_its_places_is_refused():
    slow = SimpleNamespace(is_fast=False, name_or_path="old")
    with pytest.raises(InvalidValueError, match="Use a model with a fast tokenizer"):
        token_places(slow, "ada", range(1, 2))
