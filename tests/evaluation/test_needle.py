"""The needle task: prompts of an exact length, and the model that ships."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvpolicy.errors import InvalidValueError
from kvpolicy.evaluation import needle
from kvpolicy.evaluation.measures.text import exact_match
from kvpolicy.evaluation.needle import generate_prompts, most_facts
from kvpolicy.evaluation.needle.prompts import BOS_LENGTH, FACT_LENGTH, QUESTION_LENGTH
from kvpolicy.evaluation.needle.vocabulary import BOS, SPECIAL, UNK, vocabulary

LARGEST = 8_000_000


@pytest.fixture(scope="module")
def shipped():
    return needle.load()


@pytest.fixture(scope="module")
def tokenizer(shipped):
    return shipped[1]


@st.composite
def sizes(draw):
    """Draw a length and a number of facts that fit it."""
    facts = draw(st.integers(1, 40))
    filler = draw(st.just(0) | st.integers(2, 300))
    return BOS_LENGTH + QUESTION_LENGTH + FACT_LENGTH * facts + filler, facts


seeds = st.integers(0, 2**32)


@given(size=sizes(), seed=seeds)
def test_every_prompt_has_the_length_that_was_asked_for(tokenizer, size, seed):
    tokens, facts = size
    prompts = generate_prompts(tokens=tokens, facts=facts, count=2, seed=seed)
    ids = tokenizer([prompt.text for prompt in prompts])["input_ids"]
    assert [len(row) for row in ids] == [tokens, tokens]


@given(size=sizes(), seed=seeds)
def test_the_answer_can_be_read_from_the_text(size, seed):
    tokens, facts = size
    (prompt,) = generate_prompts(tokens=tokens, facts=facts, count=1, seed=seed)
    told = [sentence.split() for sentence in prompt.text.split(".") if "password" in sentence]
    *told, (_, _, asked) = told
    assert len(told) == facts
    codes = {name: code for _, name, *code in told}
    assert len(codes) == facts
    assert codes[asked] == prompt.answer.split()


@given(size=sizes(), seed=seeds)
def test_places_point_at_the_facts_and_at_the_answer(tokenizer, size, seed):
    tokens, facts = size
    (prompt,) = generate_prompts(tokens=tokens, facts=facts, count=1, seed=seed)
    words = tokenizer.convert_ids_to_tokens(tokenizer(prompt.text)["input_ids"])
    assert len(prompt.facts) == facts
    assert prompt.needle in prompt.facts
    for fact in prompt.facts:
        sentence = [words[place] for place in fact]
        assert (sentence[0], sentence[-1], len(sentence)) == ("password", ".", FACT_LENGTH)
    assert words[prompt.needle.start + 1] == words[-1]
    assert set(prompt.answer_positions) < set(prompt.needle)
    assert [words[place] for place in prompt.answer_positions] == prompt.answer.split()


@given(size=sizes(), seed=seeds)
def test_equal_seeds_write_equal_prompts(size, seed):
    tokens, facts = size
    few = generate_prompts(tokens=tokens, facts=facts, count=1, seed=seed)
    many = generate_prompts(tokens=tokens, facts=facts, count=3, seed=seed)
    assert many[:1] == few
    assert generate_prompts(tokens=tokens, facts=facts, count=3, seed=seed + 1) != many


def test_as_many_facts_fit_as_most_facts_says():
    (prompt,) = generate_prompts(tokens=100, facts=most_facts(100), count=1, seed=0)
    assert len(prompt.facts) == 16
    with pytest.raises(InvalidValueError, match="17 facts do not fit a prompt of 100 tokens"):
        generate_prompts(tokens=100, facts=17, count=1, seed=0)


def test_more_facts_than_names_are_refused():
    with pytest.raises(InvalidValueError, match=r"can tell 128: .* there are 128 names"):
        generate_prompts(tokens=4096, facts=129, count=1, seed=0)


def test_a_gap_too_short_for_a_sentence_is_refused():
    with pytest.raises(InvalidValueError, match="ask for 16 or 18 tokens"):
        generate_prompts(tokens=17, facts=2, count=1, seed=0)


def test_several_questions_are_asked_about_one_text():
    prompts = generate_prompts(tokens=96, facts=6, count=2, seed=0, questions=3)
    texts = [prompt.text.rpartition(" question ")[0] for prompt in prompts]
    assert texts[:3] == [texts[0]] * 3 != texts[3:] == [texts[3]] * 3
    assert len({prompt.needle.start for prompt in prompts[:3]}) == 3
    [one, *_] = generate_prompts(tokens=96, facts=6, count=2, seed=0)
    assert one == prompts[0]


@pytest.mark.parametrize("questions", [0, 5])
def test_more_questions_than_facts_are_refused(questions):
    with pytest.raises(ValueError, match=f"{questions} questions do not go with 4 facts"):
        generate_prompts(tokens=96, facts=4, count=1, seed=0, questions=questions)


def test_a_prompt_without_facts_is_refused():
    with pytest.raises(InvalidValueError, match="tells 0: ask for 1 or more"):
        generate_prompts(tokens=100, facts=0, count=1, seed=0)


def test_no_word_has_two_roles():
    assert len(set(vocabulary())) == len(vocabulary())


def test_every_word_is_one_token_and_comes_back(tokenizer):
    words = vocabulary()
    assert tokenizer.convert_tokens_to_ids(list(words)) == list(range(len(words)))
    text = " ".join(words[len(SPECIAL) :])
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids[:1]) == [BOS]
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_unknown_words_do_not_fail(tokenizer):
    assert tokenizer.tokenize("password xylophone") == ["password", UNK]


def test_short_texts_are_padded_on_the_left(tokenizer):
    ids = tokenizer(["the cat", "the old cat"], padding=True)["input_ids"]
    assert ids[0][0] == tokenizer.pad_token_id


def test_the_model_is_a_plain_llama_with_grouped_heads(shipped):
    model, tokenizer = shipped
    assert type(model).__name__ == "LlamaForCausalLM"
    assert model.config.num_attention_heads == 2 * model.config.num_key_value_heads
    assert model.config.max_position_embeddings == 4096
    assert model.config.vocab_size == len(tokenizer) == len(vocabulary())
    assert not model.training


def test_the_weights_are_small_enough_for_a_wheel():
    assert (needle.MODEL / "model.safetensors").stat().st_size <= LARGEST


@pytest.mark.parametrize("facts", [8, 64])
def test_the_model_finds_the_answer(shipped, facts):
    model, tokenizer = shipped
    prompts = generate_prompts(tokens=512, facts=facts, count=8, seed=1)
    inputs = tokenizer([prompt.text for prompt in prompts], return_tensors="pt")
    said = model.generate(**inputs, max_new_tokens=8, do_sample=False)[:, 512:]
    answers = tokenizer.batch_decode(said, skip_special_tokens=True)
    right = sum(exact_match(a, prompt.answer) for a, prompt in zip(answers, prompts, strict=True))
    assert right >= 7


def test_writing_prompts_needs_no_transformers():
    code = "import sys, kvpolicy.evaluation.needle; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
