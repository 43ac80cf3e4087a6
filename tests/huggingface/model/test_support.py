"""Models that cannot be served are refused when a cache is made, with the true reason."""

import pytest
import torch
from model_types import needs_type
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    MllamaConfig,
    MllamaForConditionalGeneration,
)

from kvpolicy.errors import UnsupportedModelError
from kvpolicy.exactness.usages import small_policy
from kvpolicy.exactness.usages.inputs import tokens

TEXT = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 28,
    "patch_size": 14,
}


def _mllama():
    vision = {
        **{name: size for name, size in VISION.items() if name != "num_attention_heads"},
        "attention_heads": 4,
        "num_global_layers": 1,
        "max_num_tiles": 2,
        "vision_output_dim": 64,
        "intermediate_layers_indices": [0],
        "supported_aspect_ratios": [[1, 1], [1, 2], [2, 1]],
    }
    text = TEXT | {"cross_attention_layers": [1], "bos_token_id": 1, "eos_token_id": 2}
    return MllamaForConditionalGeneration(
        MllamaConfig(vision_config=vision, text_config=text, image_token_index=7)
    )


def _decoder_with_encoder_states(kind):
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    config = AutoConfig.for_model(
        kind, **sizes, num_attention_heads=4, is_decoder=True, add_cross_attention=True
    )
    return AutoModelForCausalLM.from_config(config)


def _paligemma():
    config = AutoConfig.for_model(
        "paligemma",
        text_config={"model_type": "gemma", **TEXT},
        vision_config={"model_type": "siglip_vision_model", **VISION},
        projection_dim=32,
        hidden_size=32,
    )
    return AutoModelForImageTextToText.from_config(config)


def _blip(kind):
    text = {
        "model_type": "opt",
        "vocab_size": 128,
        "hidden_size": 32,
        "ffn_dim": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "word_embed_proj_dim": 32,
    }
    qformer = {**TEXT, "encoder_hidden_size": 32}
    del qformer["head_dim"], qformer["num_key_value_heads"]
    config = AutoConfig.for_model(
        kind, text_config=text, vision_config=VISION, qformer_config=qformer, num_query_tokens=4
    )
    return AutoModelForImageTextToText.from_config(config)


def _got_ocr2():
    vision = {
        "hidden_size": 32,
        "output_channels": 16,
        "num_hidden_layers": 2,
        "mlp_dim": 48,
        "num_attention_heads": 4,
        "image_size": 64,
        "patch_size": 16,
        "window_size": 2,
        "global_attn_indexes": [1],
    }
    config = AutoConfig.for_model(
        "got_ocr2", text_config={"model_type": "qwen2", **TEXT}, vision_config=vision
    )
    return AutoModelForImageTextToText.from_config(config)


def _inkling(kind):
    """Make a model none of whose layers has a sliding window, so that all caches would do."""
    needs_type(kind)
    config = AutoConfig.for_model(kind, **TEXT, layer_types=["hybrid", "hybrid"])
    return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: _inkling("inkling2_text"), "Inkling2ForCausalLM gives each query a learned sink"),
        (_mllama, "has cross-attention layers"),
        (lambda: _decoder_with_encoder_states("bert"), "has cross-attention layers"),
        (lambda: _decoder_with_encoder_states("roberta"), "has cross-attention layers"),
        (_paligemma, r"is not causal \(GemmaAttention, layer 0\)"),
        (lambda: _blip("blip-2"), r"Use policy.cache\(model.language_model\)"),
        (lambda: _blip("instructblip"), r"Use policy.cache\(model.language_model\)"),
        (_got_ocr2, r"Use policy.cache\(model.model.language_model\)"),
    ],
)
def test_the_reason_is_given_when_the_cache_is_made(make, reason):
    model = make().eval()
    with pytest.raises(UnsupportedModelError, match=reason) as caught:
        small_policy("snapkv").cache(model)
    assert type(model).__name__ in str(caught.value)


@torch.no_grad()
def test_what_is_advised_works_for_a_class_around_a_language_model():
    model = _blip("blip-2").eval()
    ids = tokens(0)
    ids[0, :4] = model.config.image_token_id = 3
    images = torch.zeros(1, 3, 28, 28)
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    expected = model.generate(images, ids, **options)
    cache = small_policy("snapkv", budget=1000).cache(model.language_model)
    assert torch.equal(model.generate(images, ids, past_key_values=cache, **options), expected)
    assert cache.get_seq_length() == 65
    cache = small_policy("snapkv").cache(model.language_model)
    model.generate(images, ids, past_key_values=cache, **options)
    assert cache.policy_layers[0].held == 24 + 5
