"""A model that cannot repeat a prompt without a trace is refused by name, before any work."""

import pytest

import kvpolicy
from kvpolicy.errors import InvalidValueError, UnsupportedModelError
from kvpolicy.exactness.architectures import tiny_architecture
from kvpolicy.testing.models import tiny_model

MODELS = {
    "window": (lambda: tiny_model("gemma3_text"), "keeps a DynamicSlidingWindowLayer"),
    "linear": (lambda: tiny_architecture("qwen3_next"), "keeps a LinearAttentionLayer"),
    "latents": (lambda: tiny_architecture("deepseek_v3"), "caches latents"),
    "dynamic rotary": (
        lambda: tiny_model("llama", rope_parameters={"rope_type": "dynamic", "factor": 2.0}),
        "rotary embedding depends on the length",
    ),
    "flex": (
        lambda: tiny_model("llama", attn_implementation="flex_attention"),
        "flex_attention has masks",
    ),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", MODELS)
def test_a_model_that_is_not_served_is_refused_by_name(name):
    build, reason = MODELS[name]
    model = build()
    policy = kvpolicy.recipe("kvzip", budget=20, allocator="uniform")
    with pytest.raises(UnsupportedModelError, match=f"{type(model).__name__}.*({reason})"):
        policy.cache(model)


@pytest.mark.parametrize("option", ["first_ids", "later_ids", "answer_ids"])
def test_words_that_the_model_does_not_know_are_refused(option):
    policy = kvpolicy.recipe("kvzip", budget=20, scorer={option: (127, 128)})
    with pytest.raises(InvalidValueError, match=r"token id 128.* below 128.*tokenizer"):
        policy.cache(tiny_model("llama"))


def test_a_static_cache_is_refused():
    policy = kvpolicy.recipe("kvzip", budget=20)
    with pytest.raises(InvalidValueError, match=r"scorer 'kvzip'.*static=False"):
        policy.cache(tiny_model("llama"), static=True, capacity=8)
