"""On a GPU faults are read one forward later, and are named before their result is used."""

import attrs
import pytest
import torch

import kvpolicy
from benchmarks.waits.forwards import counting, model_on_gpu
from benchmarks.waits.pretended import Pretended
from kvpolicy import Selection
from kvpolicy.errors import InvalidComponentError, InvalidValueError, UnsupportedModelError
from kvpolicy.stages.compaction import GatherCompactor
from kvpolicy.stages.selection import TopKSelector


@attrs.frozen(kw_only=True)
class OfNaN:
    window = 8

    def score(self, observation, reduce):
        scores = observation.folded_attention(reduce)
        return scores * torch.nan


@attrs.frozen(kw_only=True)
class Repeating(TopKSelector):
    def select(self, scores, budgets):
        return Selection(indices=super().select(scores, budgets).indices * 0, lengths=budgets)


@attrs.frozen(kw_only=True)
class OutOfRange(TopKSelector):
    def select(self, scores, budgets):
        return Selection(indices=super().select(scores, budgets).indices + 1000, lengths=budgets)


@attrs.frozen(kw_only=True)
class Spoiling(GatherCompactor):
    def compact(self, keys, values, selection, observation):
        keys, values = super().compact(keys, values, selection, observation)
        return keys, values / 0


FAULTS = {
    "scorer": (OfNaN(), "scorer OfNaN returned scores that are NaN"),
    "selector": (Repeating(), "selector Repeating returned rows that repeat"),
    "selector of other rows": (OutOfRange(), "selector OutOfRange returned rows that repeat"),
    "compactor": (Spoiling(), "compactor Spoiling returned numbers that are NaN"),
}


def prompt():
    return Pretended(torch.arange(3, 63)[None] % 100)


def token():
    return Pretended(torch.tensor([[5]]))


@pytest.fixture
def counts():
    with counting() as found:
        yield found


@pytest.mark.parametrize("name", FAULTS)
def test_a_faulty_part_is_named_when_the_next_forward_begins(name, counts):
    part, message = FAULTS[name]
    kind = name.split(maxsplit=1)[0]
    model = model_on_gpu(2)
    parts = {"scorer": "snapkv", "budget": 40} | {kind: part}
    cache = kvpolicy.compose(**parts).cache(model)
    model(prompt(), past_key_values=cache)
    assert counts.total("waits") == 0
    with pytest.raises(InvalidComponentError, match=message):
        model(token(), past_key_values=cache)
    with pytest.raises(kvpolicy.errors.CacheStateError, match=message):
        model(token(), past_key_values=cache)
    cache.reset()


@pytest.mark.parametrize("recipe", ["snapkv", "h2o"])
def test_spans_and_a_divider_make_nothing_wait(recipe, counts):
    spans, model = {"system": (2, 9), "image": (20, 31)}, model_on_gpu(2)
    cache = kvpolicy.recipe(recipe, budget=40).cache(
        model, spans=spans, protect=["system"], divider="fair"
    )
    model(prompt(), past_key_values=cache)
    assert counts.total("waits") == 0


@pytest.mark.parametrize("copy", [lambda cache: cache.clone(), lambda cache: cache.save("nowhere")])
def test_a_faulty_part_is_named_before_its_cache_is_copied_or_saved(copy, counts):
    model = model_on_gpu(2)
    cache = kvpolicy.compose(scorer=OfNaN(), budget=40).cache(model)
    model(prompt(), past_key_values=cache)
    with pytest.raises(InvalidComponentError, match="scorer OfNaN"):
        copy(cache)


def test_a_model_of_nan_is_named_after_its_prompt(counts):
    model = model_on_gpu(2)
    cache = kvpolicy.recipe("snapkv", budget=40).cache(model)
    model.model.layers[1].self_attn.v_proj.weight.numbers.fill_(torch.nan)
    model(prompt(), past_key_values=cache)
    with pytest.raises(UnsupportedModelError, match="values are NaN or infinite in attention lay"):
        model(token(), past_key_values=cache)


def test_a_model_that_begins_to_compute_nan_is_named_within_16_tokens(counts):
    model = model_on_gpu(2)
    cache = kvpolicy.recipe("tova", budget=40).cache(model)
    model(prompt(), past_key_values=cache)
    model(token(), past_key_values=cache)
    model.model.layers[1].self_attn.k_proj.weight.numbers.fill_(torch.nan)

    def go_on():
        for _ in range(17):
            model(token(), past_key_values=cache)

    with pytest.raises(UnsupportedModelError, match="queries, keys or values are NaN"):
        go_on()


def test_a_weight_changed_in_place_is_factorised_anew_by_the_next_cache(counts):
    model = model_on_gpu(2)
    policy = kvpolicy.recipe("restkv", budget=40)

    def kept():
        cache = policy.cache(model)
        model(prompt(), past_key_values=cache)
        return [each.numbers.tolist() for each in cache.positions]

    before = kept()
    for layer in model.model.layers:
        # What merging adapters does: the version counter stays as it is.
        weight = layer.self_attn.o_proj.weight.numbers
        weight.copy_(weight.roll(1, 1) * torch.linspace(0.1, 9, weight.shape[1]))
    after = kept()
    assert after != before
    model(prompt(), past_key_values=policy.cache(model))
    assert kept() == after


@pytest.mark.parametrize("recipe", ["expectedattention", "streamingllm"])
def test_a_decoded_token_with_a_gap_before_it_is_named_within_16_tokens(recipe, counts):
    model = model_on_gpu(2)
    cache = kvpolicy.recipe(recipe, budget=40).cache(model)
    model(prompt(), past_key_values=cache)
    model(token(), past_key_values=cache)  # The first token reads what the prompt left in doubt.
    counts.clear()
    for step in range(61, 66):
        model(token(), position_ids=Pretended(torch.tensor([[step]])), past_key_values=cache)
    assert counts.total("waits") == 0

    def go_on():
        for step in range(16):
            places = Pretended(torch.tensor([[step + 70]]))
            model(token(), position_ids=places, past_key_values=cache)

    with pytest.raises(InvalidValueError, match="do not count up by one"):
        go_on()
    with pytest.raises(kvpolicy.errors.CacheStateError, match="do not count up by one"):
        model(token(), past_key_values=cache)


def test_rows_of_unequal_length_decode_at_their_own_positions(counts):
    model = model_on_gpu(2)
    cache = kvpolicy.recipe("expectedattention", budget=40).cache(model)
    ids = Pretended(torch.arange(3, 123).view(2, 60) % 100)
    mask = torch.ones(2, 60, dtype=torch.long)
    mask[0, :9] = 0
    places = (mask.cumsum(1) - 1).clamp_min(0)
    model(
        ids, attention_mask=Pretended(mask), position_ids=Pretended(places), past_key_values=cache
    )

    def decode(first, second, steps):
        nonlocal mask
        for step in range(steps):
            mask = torch.cat([mask, mask.new_ones(2, 1)], 1)
            model(
                Pretended(torch.tensor([[5], [6]])),
                attention_mask=Pretended(mask),
                position_ids=Pretended(torch.tensor([[first + step], [second + step]])),
                past_key_values=cache,
            )

    decode(51, 60, 20)
    with pytest.raises(InvalidValueError, match="do not count up by one"):
        decode(71, 79, 20)
