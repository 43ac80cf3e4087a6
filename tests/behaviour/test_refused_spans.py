"""Spans that go with no budget or no prompt are refused before any work, with the way out."""

import pytest
import torch

import kvpolicy
from kvpolicy.errors import CacheStateError, ComponentFailedError, InvalidValueError
from kvpolicy.testing import tiny_model

SPANS = {"tools": (8, 14), "image": (30, 37)}


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama")


def ids_of(*shape):
    return torch.randint(1, 128, shape, generator=torch.Generator().manual_seed(0))


def small(**changes):
    settings = {"budget": 26, "scorer": {"window": 8}, "recent": 8}
    return kvpolicy.recipe("snapkv", **(settings | changes))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"protect": ["image"]}, "there are none"),
        ({"spans": SPANS}, "nothing uses them"),
        ({"spans": SPANS, "protect": ["imag"]}, "Did you mean 'image'"),
        (
            {"spans": {"a": (0, 20), "b": (20, 30)}, "protect": ["a", "b"]},
            r"30 positions of 'a', 'b'.*recent 8 these are 38.*budget of 26",
        ),
    ],
)
def test_what_goes_not_together_is_refused_when_the_cache_is_made(model, options, message):
    with pytest.raises(InvalidValueError, match=message):
        small().cache(model, **options)


@pytest.mark.parametrize(
    ("spans", "changes", "message"),
    [
        ({"image": (30, 41)}, {}, r"'image' \(30, 41\) is cut: row 1.*40 tokens.*max_length"),
        ({"image": (44, 50)}, {}, r"'image' \(44, 50\) lies behind the first prompt.*44 tokens"),
        ([{"image": (0, 2)}] * 3, {}, "for 3 sequences, but the batch has 2"),
        ({"image": (0, 30)}, {"budget": 0.5}, r"30 positions of 'image'.*budget of 2\d"),
    ],
)
def test_a_prompt_that_the_spans_do_not_fit_is_refused_before_any_work(
    model, spans, changes, message
):
    cache = small(**changes).cache(model, spans=spans, protect=["image"])
    mask = torch.ones(2, 44, dtype=torch.long)
    mask[1, :4] = 0
    with pytest.raises(InvalidValueError, match=message):
        model(ids_of(2, 44), attention_mask=mask, past_key_values=cache)
    assert cache.seen == 0
    with pytest.raises(InvalidValueError, match=message):
        model.generate(
            ids_of(2, 44),
            attention_mask=mask,
            past_key_values=cache,
            prefill_chunk_size=43,
            max_new_tokens=1,
        )
    assert cache.seen == 0


def test_generate_refuses_before_layers_with_sliding_windows_have_read_a_token():
    model = tiny_model("gemma3_text")
    cache = small().cache(model, spans={"image": (50, 62)}, protect=["image"])
    with pytest.raises(InvalidValueError, match="is cut"):
        model.generate(ids_of(1, 60), past_key_values=cache, max_new_tokens=1)
    model.generate(ids_of(1, 70), past_key_values=cache, max_new_tokens=1)
    held = cache.policy_layers[0].positions[0].tolist()
    assert all(set(head) >= {*range(50, 62)} for head in held)


def test_a_batch_that_no_beams_made_must_have_as_many_sequences_as_spans(model):
    rows = [{"image": (30, 37)}, {"image": (3, 9)}]
    cache = small().cache(model, spans=rows, protect=True)
    for read in (model, model.generate):
        with pytest.raises(InvalidValueError, match="spans for 2 sequences, but the batch has 4"):
            read(ids_of(4, 60), past_key_values=cache)
        assert cache.seen == 0
    model.generate(ids_of(2, 60), past_key_values=cache, num_beams=2, max_new_tokens=2)
    assert cache.batch_size == 4


def test_texts_without_an_image_need_no_other_call(model):
    found = kvpolicy.find_spans(ids_of(2, 60), 128)
    cache = small().cache(model, spans=found, protect=True)
    plain = small().cache(model)
    for each in (cache, plain):
        model(ids_of(2, 60), past_key_values=each)
    assert all(torch.equal(*both) for both in zip(cache.positions, plain.positions, strict=True))


class Broken:
    def divide(self, lengths):
        raise KeyError("rules")


def test_after_a_divider_failed_in_generate_the_reason_stays_the_same(model):
    cache = small().cache(model, spans=SPANS, divider=Broken())
    with pytest.raises(ComponentFailedError):
        model.generate(ids_of(1, 60), past_key_values=cache, max_new_tokens=1)
    with pytest.raises(CacheStateError, match=r"KeyError.*Call cache.reset\(\)"):
        model.generate(ids_of(1, 60), past_key_values=cache, max_new_tokens=1)
