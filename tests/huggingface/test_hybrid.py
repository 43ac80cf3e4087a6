"""Layers with attention and a linear state in one: the attention is evicted, the state is not."""

import inspect

import pytest
import torch
from transformers.cache_utils import LinearAttentionLayer

from kvpolicy.errors import CacheFileError, CacheStateError
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


def test_what_a_state_cannot_do_is_refused_and_changes_nothing(cache, tmp_path):
    with pytest.raises(CacheStateError, match="its state has no way back"):
        cache.crop(-1)
    with pytest.raises(CacheFileError, match="linear state in one"):
        cache.save(tmp_path / "cache.safetensors")
    assert cache.get_seq_length() == 60
    assert not list(tmp_path.iterdir())


def test_a_clone_has_states_of_its_own(model, cache):
    twin = cache.clone()
    before = [state.clone() for state in cache.policy_layers[0].recurrent_states.values()]
    model(input_ids=tokens(1, 3), past_key_values=twin)
    after = cache.policy_layers[0].recurrent_states.values()
    torch.testing.assert_close(list(after), before, rtol=0, atol=0)
