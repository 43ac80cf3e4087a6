"""A forward is recorded with what layers held before it, and with the changes since the last."""

import torch

from kvpolicy.exactness.forwards import CHANGES, recorded
from kvpolicy.exactness.usages import small_policy, tokens
from kvpolicy.testing.models import tiny_model


def test_arguments_are_recorded_by_name_however_they_are_given():
    model = tiny_model("llama")
    cache = small_policy("snapkv").cache(model)
    with recorded(model, cache) as forwards:
        model(tokens(0), None, None, cache)
        model(input_ids=tokens(1, 1), past_key_values=cache)

    assert [forward.length for forward in forwards] == [60, 1]
    assert [forward.seen for forward in forwards] == [0, 60]
    assert [held.shape[-1] for held in forwards[1].positions] == [24, 24]


def test_forwards_of_other_caches_are_not_recorded():
    model = tiny_model("llama")
    cache = small_policy("snapkv").cache(model)
    with recorded(model, cache) as forwards:
        model(input_ids=tokens(0), past_key_values=small_policy("snapkv").cache(model))
        model(input_ids=tokens(0))
    assert forwards == []


def test_a_change_belongs_to_the_forward_after_it():
    model = tiny_model("llama")
    cache = small_policy("snapkv").cache(model)
    with recorded(model, cache) as forwards:
        model(input_ids=tokens(0, batch=2), past_key_values=cache)
        cache.reorder_cache(torch.tensor([1, 0]))
        model(input_ids=tokens(1, 1, batch=2), past_key_values=cache)
        model(input_ids=tokens(2, 1, batch=2), past_key_values=cache)
    assert [len(forward.changes) for forward in forwards] == [0, 1, 0]


def test_cache_and_model_are_left_as_they_were_found():
    model = tiny_model("llama")
    cache = small_policy("snapkv").cache(model)
    before = len(model._forward_hooks)
    with recorded(model, cache):
        assert set(CHANGES) <= set(vars(cache))
    assert not set(CHANGES) & set(vars(cache))
    assert len(model._forward_hooks) == before
