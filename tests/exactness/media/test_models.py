"""Models that read media are found in transformers' lists, and are built tiny."""

import pytest

from kvpolicy.exactness.media.models import TEXT, media_types, tiny_media_config, tiny_media_model


def test_types_are_those_that_transformers_lists():
    types = media_types()
    assert {"llava", "qwen2_vl", "gemma3", "voxtral"} <= set(types)
    assert "llama" not in types


@pytest.mark.filterwarnings("ignore")
def test_ids_of_media_are_no_ids_of_text():
    config = tiny_media_config("qwen3_vl")
    assert config.image_token_id >= TEXT
    assert config.get_text_config().vocab_size > config.image_token_id


@pytest.mark.filterwarnings("ignore")
def test_weights_that_begin_with_zeros_are_drawn():
    model = tiny_media_model("gemma3")
    assert all(bool(each.any()) for each in model.parameters() if each.dim() > 1)
