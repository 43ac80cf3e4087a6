"""A prompt that does not begin with what a cache has read is refused before any work."""

import pytest
import torch

import kvpolicy
from kvpolicy.errors import InvalidValueError
from kvpolicy.evaluation import needle
from kvpolicy.exactness.limits import LIMIT
from kvpolicy.exactness.usages import small_policy
from kvpolicy.exactness.usages.inputs import NEW_TOKENS, generate, padded, replayed, tokens
from kvpolicy.testing.models import tiny_model

READ = 60 + NEW_TOKENS - 1


def begun(model=None, ids=None, **options):
    """Return a model, a cache that has read a prompt and an answer, and the text of both."""
    model = model or tiny_model("llama")
    cache = small_policy("snapkv").cache(model)
    return model, cache, generate(model, cache, tokens(1) if ids is None else ids, **options)


def refused(model, cache, ids, message, **options):
    """Check that a prompt is refused, that nothing was read, and what the cure is."""
    before, positions = cache.get_seq_length(), cache.positions
    with pytest.raises(InvalidValueError, match=message) as info:
        generate(model, cache, ids, **options)
    assert "cache.reset()" in str(info.value)
    assert cache.get_seq_length() == before
    assert all(map(torch.equal, cache.positions, positions))


def more(text, count=9):
    return torch.cat([text, tokens(2, count, len(text))], 1)


def test_a_history_that_goes_on_is_read():
    model, cache, text = begun()
    generate(model, cache, more(text))
    assert cache.get_seq_length() == READ + 1 + 9 + NEW_TOKENS - 1


def test_an_edited_history_is_refused_at_the_token_that_differs():
    model, cache, text = begun()
    edited = more(text)
    edited[0, 12] += 1
    refused(
        model, cache, edited,
        rf"row 0 .*token 12 was {int(text[0, 12])}, and is {int(text[0, 12]) + 1} now",
    )  # fmt: skip
    generate(model, cache, more(text))


def test_an_edited_answer_is_refused():
    model, cache, text = begun()
    edited = more(text)
    edited[0, READ - 1] += 1
    refused(model, cache, edited, f"token {READ - 1} was")


def test_the_last_token_of_an_answer_may_change_because_it_was_not_read():
    model, cache, text = begun()
    edited = more(text)
    edited[0, READ] += 1
    generate(model, cache, edited)


@pytest.mark.parametrize("length", [1, 40, 60, READ])
def test_a_prompt_that_is_no_longer_than_what_was_read_is_refused(length):
    model, cache, text = begun()
    refused(model, cache, text[:, :length], f"has {length} tokens, but this cache has read {READ}")


def test_a_shorter_prompt_is_refused_after_plain_forwards_too():
    model = tiny_model("llama")
    cache = small_policy("snapkv").cache(model)
    model(input_ids=tokens(0), past_key_values=cache)
    refused(model, cache, tokens(0, 20), "has 20 tokens, but this cache has read 60")


def test_the_new_tokens_alone_are_read_with_a_mask_of_all():
    model, cache, text = begun()
    _, other, _ = begun(model)
    whole = more(text)
    generate(model, cache, whole)
    mask = torch.ones_like(whole)
    generate(model, other, whole[:, READ:], attention_mask=mask)
    assert all(map(torch.equal, cache.positions, other.positions))
    assert torch.equal(other.read_tokens.ids, cache.read_tokens.ids)


def test_after_reset_any_prompt_is_read():
    model, cache, _ = begun()
    cache.reset()
    generate(model, cache, tokens(7, 30))
    assert cache.get_seq_length() == 30 + NEW_TOKENS - 1


def test_a_copy_remembers_what_was_read():
    model, cache, text = begun()
    twin = cache.clone()
    generate(model, cache, more(text))
    generate(model, twin, more(text, 5))
    refused(model, twin, more(tokens(3, READ + 30)), "token 0 was")


def test_tokens_that_were_taken_back_may_change():
    model, cache, text = begun()
    cache.crop(-3)
    edited = more(text)
    edited[0, READ - 2] += 1
    generate(model, cache, edited)
    model, cache, text = begun()
    cache.crop(-3)
    edited[0, READ - 4] += 1
    refused(model, cache, edited, f"token {READ - 4} was")


def test_rows_are_compared_where_they_are_now():
    ids = tokens(1, batch=2)
    model, cache, text = begun(ids=ids)
    cache.reorder_cache(torch.tensor([1, 0]))
    refused(model, cache, more(text), "row 0 of the prompt differs")
    generate(model, cache, more(text[[1, 0]]))


def test_padding_is_not_compared():
    ids, mask = padded([60, 41])
    model, cache, text = begun(ids=ids, attention_mask=mask)
    whole = more(text)
    whole[1, :19] = 99
    longer = torch.cat([mask, mask.new_ones(2, whole.shape[1] - 60)], 1)
    generate(model, cache, whole, attention_mask=longer)


def test_after_beams_the_length_is_compared_alone():
    model, cache, _ = begun(num_beams=2)
    assert cache.read_tokens.ids is None
    refused(model, cache, tokens(1), f"has read {READ}")


def test_rows_that_were_repeated_are_compared():
    model, cache, text = begun()
    cache.batch_repeat_interleave(2)
    generate(model, cache, more(text.repeat(2, 1)), do_sample=False)
    model, cache, text = begun()
    cache.batch_repeat_interleave(2)
    refused(model, cache, more(tokens(9, 80, 2)), "row 0 of the prompt differs")


def test_what_was_known_is_known_after_an_interrupt():
    model, cache, text = begun()

    def interrupt(ids, scores, **options):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(model, cache, more(text), stopping_criteria=[interrupt])
    refused(model, cache, more(tokens(9, 100)), "token 0 was")


def test_a_second_turn_is_as_exact_as_before():
    def turns(cache):
        generate(cache._model(), cache, more(generate(cache._model(), cache, tokens(1))))

    assert replayed(tiny_model("llama"), small_policy("restkv"), turns) <= LIMIT


def test_a_pipeline_that_is_called_twice_with_one_cache_is_refused():
    from transformers import pipeline

    model, tokenizer = needle.load()
    first, second = needle.generate_prompts(tokens=256, facts=8, count=2, seed=0)
    answer = pipeline("text-generation", model=model, tokenizer=tokenizer)
    options = {"do_sample": False, "max_new_tokens": 4}
    cache = kvpolicy.recipe("snapkv", budget=64).cache(model)
    answer(first.text, past_key_values=cache, **options)
    for prompt in (first, second):
        with pytest.raises(InvalidValueError, match=r"cache\.reset\(\)"):
            answer(prompt.text, past_key_values=cache, **options)


def test_a_decoded_token_is_not_noted():
    model = tiny_model("llama")
    cache = small_policy("snapkv").cache(model)
    generate(model, cache, tokens(1))
    known = cache.read_tokens.ids
    model(input_ids=tokens(2, 1), past_key_values=cache)
    assert cache.read_tokens.ids is known
    assert known.dtype == torch.int32
    assert known.shape == (1, READ)
