"""What does not go with a remainder is refused by name, before anything is written."""

import pytest
import torch

import kvpolicy
from kvpolicy.errors import InvalidValueError, UnsupportedModelError
from kvpolicy.exactness.architectures import tiny_architecture
from kvpolicy.exactness.usages import small_policy, tokens
from kvpolicy.huggingface.model.architectures import DISTANCE_BIAS
from kvpolicy.testing.models import tiny_model
from kvpolicy.vllm.policies import check_policy


@pytest.fixture(autouse=True)
def _quiet():
    with torch.no_grad():
        yield


def read(model, cache, count):
    """Read a prompt of so many tokens."""
    return model(input_ids=tokens(0, count), past_key_values=cache)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"slot_positions": True}, "stands for many keys and has no place"),
        ({"budget": kvpolicy.within(0.02)}, "an error target .* does not go with"),
        ({"budget": 8, "recent": 8}, "budget 8 is smaller than 9.*one row for"),
        ({"budget": 1, "recent": 0}, "budget 1 is smaller than 2"),
    ],
)
def test_settings_that_do_not_go_with_a_remainder_are_refused(settings, reason):
    arguments = {"scorer": "knorm", "compactor": "momentkv", "budget": 64} | settings
    with pytest.raises(InvalidValueError, match=reason):
        kvpolicy.compose(**arguments)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"storage": "quantized"}, "which storage 'quantized' .* does not store"),
        ({"storage": "offloaded"}, "which storage 'offloaded' .* does not store"),
        ({"static": True, "capacity": 8}, "the attention of a captured step does not take"),
    ],
)
def test_caches_that_have_no_place_for_a_remainder_are_refused(options, reason):
    with pytest.raises(InvalidValueError, match=reason):
        small_policy("momentkv").cache(tiny_model(), **options)


def test_latents_and_biases_by_distance_are_refused():
    with pytest.raises(UnsupportedModelError, match="caches latents, of which each head"):
        small_policy("snapkv", compactor="momentkv").cache(tiny_architecture("deepseek_v3"))
    kind = next(iter(DISTANCE_BIAS))
    with pytest.raises(UnsupportedModelError, match=r"compactor 'momentkv'.* does not say"):
        small_policy("snapkv", compactor="momentkv").cache(tiny_architecture(kind))


def test_spans_that_leave_no_room_for_the_row_are_refused():
    policy = small_policy("momentkv", budget=24, recent=8)
    model = tiny_model()
    spans = {"system": (0, 16)}
    cache = policy.cache(model, spans=spans, protect=True)
    with pytest.raises(InvalidValueError, match="budget of 24, of which 1 is the remainder's"):
        read(model, cache, 60)
    fitting = policy.cache(model, spans={"system": (0, 15)}, protect=True)
    read(model, fitting, 60)
    assert fitting.positions[0][0, 0].tolist()[:15] == list(range(15))


def test_vllm_refuses_a_remainder_by_name():
    with pytest.raises(InvalidValueError, match=r"'momentkv'.* with a bias of their logits"):
        check_policy(small_policy("momentkv"))


def test_attention_weights_and_dropout_are_refused_once_something_was_evicted():
    model = tiny_model(attn_implementation="eager")
    cache = small_policy("momentkv").cache(model)
    read(model, cache, 60)
    with pytest.raises(UnsupportedModelError, match="over a remainder does not compute them"):
        model(input_ids=tokens(1, 5), past_key_values=cache, output_attentions=True)
