"""With an image in the prompt the yardstick agrees with a cache, and sees what is off by one."""

import functools

import pytest
import torch

from kvpolicy.errors import InvalidValueError, UnsupportedModelError
from kvpolicy.exactness.forwards import recorded
from kvpolicy.exactness.limits import LIMIT
from kvpolicy.exactness.media.models import tiny_media_model
from kvpolicy.exactness.media.prompts import arguments, media_of
from kvpolicy.exactness.media.usages import media_by_forward, padded_batch_with_media
from kvpolicy.exactness.replay import max_logit_difference
from kvpolicy.exactness.usages import small_policy, tokens

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def _without_gradients():
    with torch.no_grad():
        yield


@functools.cache
def model_of(model_type):
    return tiny_media_model(model_type)


@pytest.mark.parametrize("model_type", ["llava", "gemma3", "gemma4"])
def test_a_conversation_about_an_image_is_exact(model_type):
    assert media_by_forward(model_of(model_type), small_policy("restkv")) <= LIMIT


def test_a_padded_batch_with_rotary_positions_of_images_is_exact():
    assert padded_batch_with_media(model_of("qwen3_vl"), small_policy("adakv")) <= LIMIT


@pytest.mark.parametrize("model_type", ["llava", "qwen3_vl"])
def test_a_position_that_is_off_by_one_is_seen(model_type):
    model, cache = model_of(model_type), small_policy("restkv").cache(model_of(model_type))
    media = media_of(model)
    with recorded(model, cache) as forwards:
        model(**arguments(model, media.prompt(1, 30, 30), media), past_key_values=cache)
        model(input_ids=tokens(5, 1), past_key_values=cache)
    assert max_logit_difference(model, forwards, cache) <= LIMIT
    held = forwards[1].positions[0]
    # The last position before a gap makes room for its neighbour.
    at = int((held[0, 0].diff() > 1).nonzero()[-1])
    held[:, :, at] += 1
    assert max_logit_difference(model, forwards, cache) > 10 * LIMIT


def test_another_image_gives_other_logits():
    model = model_of("llava")
    media = media_of(model)
    prompt = arguments(model, media.prompt(1, 5, 5), media)
    other = prompt | {"pixel_values": prompt["pixel_values"] + 1}
    assert not torch.equal(model(**prompt).logits, model(**other).logits)


def test_images_that_are_seen_whole_are_refused_by_scorers_that_judge_every_query():
    with pytest.raises((InvalidValueError, UnsupportedModelError), match="hide padding"):
        media_by_forward(model_of("gemma3"), small_policy("h2o"))


def test_a_model_without_a_known_layout_says_the_first_reason():
    model = torch.nn.Module()
    model.forward = lambda input_ids: None
    with pytest.raises(ValueError, match="it takes no tensors of a known name"):
        media_of(model)
