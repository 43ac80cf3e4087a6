"""Layers with attention and a linear state in one: the attention is evicted, the state is not."""

import inspect

import pytest
import torch
from transformers.cache_utils import LinearAttentionLayer

import kvpolicy
from kvpolicy.errors import CacheStateError
from kvpolicy.exactness.architectures import tiny_architecture
from kvpolicy.exactness.limits import LIMIT
from kvpolicy.exactness.usages import BITWISE, USAGES, small_policy, tokens

pytestmark = pytest.mark.skipif(
    "number_of_states" not in inspect.signature(LinearAttentionLayer.__init__).parameters,
    reason="refused here: this transformers does not say how many states a layer has",
)


@pytest.fixture(scope="module")
def model():
    return tiny_architecture("falcon_h1")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "usage", ["second turn by forward", "reset and reused", "chosen and reordered rows"]
)
def test_logits_are_exact(model, usage):
    difference = USAGES[usage](model, small_policy("snapkv"))
    assert difference <= (0 if usage in BITWISE else LIMIT)


@pytest.fixture(scope="module")
def cache(model):
    cache = small_policy("snapkv").cache(model)
    with torch.no_grad():
        model(input_ids=tokens(0), past_key_values=cache)
    return cache


def test_attention_is_evicted_and_states_are_counted(cache):
    for layer in cache.policy_layers:
        states = (*layer.conv_states.values(), *layer.recurrent_states.values())
        assert layer.held == 24
        assert all(state.abs().sum() > 0 for state in states)
        held = sum(each.nbytes for each in (layer.keys, layer.values))
        assert layer.nbytes >= held + sum(state.nbytes for state in states)
        assert layer.nbytes < layer.full_nbytes


def test_what_a_state_cannot_do_is_refused_and_changes_nothing(cache):
    with pytest.raises(CacheStateError, match="its state has no way back"):
        cache.crop(-1)
    assert cache.get_seq_length() == 60


def reading(model, cache, turns, first, batch):
    """Read turns of these lengths; return the logits of each."""
    ids = [tokens(first + at, length, batch) for at, length in enumerate(turns)]
    with torch.no_grad():
        return [model(input_ids=each, past_key_values=cache).logits for each in ids]


KINDS = ("falcon_h1", "zamba", "zamba2", "zaya", "jamba", "qwen3_next", "lfm2")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch", [1, 2])
def test_a_file_goes_on_bit_for_bit_in_another_object_of_the_model(kind, batch, tmp_path):
    path = tmp_path / "cache.safetensors"
    model, other = tiny_architecture(kind), tiny_architecture(kind)
    cache = small_policy("snapkv").cache(model)
    reading(model, cache, (60, 1, 5), 0, batch)
    cache.save(path)
    loaded = kvpolicy.load(path, other)
    assert loaded.report().nbytes <= cache.report().nbytes
    expected = reading(model, cache, (1, 9, 1, 1), 7, batch)
    found = reading(other, loaded, (1, 9, 1, 1), 7, batch)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_a_file_of_an_empty_cache_and_of_a_reset_one_can_be_read(model, tmp_path):
    path = tmp_path / "cache.safetensors"
    cache = small_policy("snapkv").cache(model)
    cache.save(path)
    expected = reading(model, kvpolicy.load(path, model), (60, 1), 3, 1)
    reading(model, cache, (60, 1), 0, 1)
    cache.reset()
    cache.save(path)
    found = reading(model, kvpolicy.load(path, model), (60, 1), 3, 1)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", [*KINDS, "inkling_text"])
def test_a_reset_cache_takes_another_number_of_sequences(kind):
    model = tiny_architecture(kind)
    cache = small_policy("snapkv").cache(model)
    for first, batch in enumerate((2, 1, 3)):
        expected = reading(model, small_policy("snapkv").cache(model), (40, 1, 3), first, batch)
        found = reading(model, cache, (40, 1, 3), first, batch)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
        cache.reset()
        assert cache.nbytes == 0


def test_a_clone_has_states_of_its_own(model, cache):
    twin = cache.clone()
    before = [state.clone() for state in cache.policy_layers[0].recurrent_states.values()]
    model(input_ids=tokens(1, 3), past_key_values=twin)
    after = cache.policy_layers[0].recurrent_states.values()
    torch.testing.assert_close(list(after), before, rtol=0, atol=0)
