"""Rotary positions that do not count up by one are refused where a policy computes with them."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText, DynamicCache

import kvpolicy
from kvpolicy.errors import InvalidValueError, UnsupportedModelError
from kvpolicy.exactness.limits import LIMIT
from kvpolicy.exactness.usages import small_policy
from kvpolicy.exactness.usages.inputs import tokens
from kvpolicy.testing.models import tiny_model

IMAGE, VIDEO, BEGIN, END = 7, 8, 5, 6
NEEDING = pytest.mark.parametrize(
    "recipe", ["streamingllm", "lacache", "expectedattention", "capkv", "dapq", "triattention"]
)
REFUSAL = "do not count up by one"


def _qwen_vl():
    text = {
        "vocab_size": 128,
        "hidden_size": 32,
        "intermediate_size": 48,
        "pad_token_id": 0,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10_000.0,
            "mrope_section": [2, 1, 1],
        },
    }
    vision = {"depth": 1, "hidden_size": 32, "embed_dim": 32, "num_heads": 4, "patch_size": 14}
    config = AutoConfig.for_model(
        "qwen2_vl",
        text_config=text,
        vision_config=vision,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=BEGIN,
        vision_end_token_id=END,
    )
    torch.manual_seed(0)
    return AutoModelForImageTextToText.from_config(config).eval()


def _with_image():
    ids = tokens(0, 68) % 100 + 10
    ids[0, 10], ids[0, 11:27], ids[0, 27] = BEGIN, IMAGE, END
    pixels = torch.randn(64, 1176, generator=torch.Generator().manual_seed(0))
    return {
        "input_ids": ids,
        "pixel_values": pixels,
        "image_grid_thw": torch.tensor([[1, 8, 8]]),
        "mm_token_type_ids": (ids == IMAGE).long(),
    }


def _read(model, cache, ids, places=None):
    with torch.no_grad():
        return model(ids, position_ids=places, past_key_values=cache).logits


def _takes_positions_of_text(model):
    """Whether M-RoPE takes positions without axes; in transformers 5.6 it does not."""
    rotary = model.model.language_model.rotary_emb
    try:
        rotary(torch.zeros(1), torch.zeros(1, 1).long())
    except IndexError:
        return False
    return True


@NEEDING
def test_images_are_refused_and_text_is_served(recipe):
    model = _qwen_vl()
    if not _takes_positions_of_text(model):
        with pytest.raises(UnsupportedModelError, match="rotary embedding"):
            small_policy(recipe).cache(model)
        return
    cache = small_policy(recipe).cache(model)
    with pytest.raises(InvalidValueError, match=REFUSAL), torch.no_grad():
        model(**_with_image(), past_key_values=cache)
    assert cache.get_seq_length() == 0
    model.model.rope_deltas = None
    with torch.no_grad():
        model(tokens(0) % 100 + 10, past_key_values=cache)
    assert cache.policy_layers[0].held == 24


def test_images_are_served_where_no_part_computes_with_rotary_positions():
    model = _qwen_vl()
    cache, full = small_policy("snapkv", budget=1000).cache(model), DynamicCache()
    with torch.no_grad():
        found = model(**_with_image(), past_key_values=cache).logits
        expected = model(**_with_image(), past_key_values=full).logits
    assert torch.equal(found, expected)


@NEEDING
@pytest.mark.parametrize("gap_at", [30, 60])
def test_gaps_are_refused_and_the_conversation_goes_on(recipe, gap_at):
    model = tiny_model("llama")
    cache, undisturbed = (small_policy(recipe).cache(model) for _ in range(2))
    places = torch.arange(64)
    places[gap_at:] += 3
    turns = [tokens(0), tokens(1, 4)]
    if gap_at == 60:
        _read(model, cache, turns[0], places[None, :60])
    refused = (turns[0], places[None, :60]) if gap_at < 60 else (turns[1], places[None, 60:])
    with pytest.raises(InvalidValueError, match=REFUSAL):
        _read(model, cache, *refused)
    assert cache.get_seq_length() == (0 if gap_at < 60 else 60)
    if gap_at < 60:
        _read(model, cache, turns[0])
    _read(model, undisturbed, turns[0])
    found, expected = (_read(model, each, turns[1]) for each in (cache, undisturbed))
    assert torch.equal(found, expected)


@pytest.mark.parametrize("far", [0, 100_000, 4_000_000])
@pytest.mark.parametrize("recipe", ["streamingllm", "random"])
def test_far_into_a_stream_the_tokens_held_are_read_as_if_alone(recipe, far):
    """One layer: then keys depend on their own token only."""
    model, ids = tiny_model("llama", num_hidden_layers=1, num_key_value_heads=1), tokens(0, 64)
    cache = small_policy(recipe, slot_positions=True).cache(model)
    places = torch.arange(far, far + 64)[None]
    _read(model, cache, ids[:, :60], places[:, :60])
    held = [*cache.positions[0][0, 0].tolist(), 60]
    found = _read(model, cache, ids[:, 60:61], places[:, 60:61])
    kvpolicy.restore(model)
    with torch.no_grad():
        expected = model(ids[:, held]).logits[:, -1:]
    assert (found - expected).abs().max() <= LIMIT


@pytest.mark.parametrize("recipe", ["streamingllm", "lacache"])
def test_offsets_follow_rows_copies_and_files(recipe, tmp_path):
    model, ids = tiny_model("llama"), tokens(0, 64, 2)
    places = torch.stack([torch.arange(64) + 10, torch.arange(64) + 5000])
    cache = small_policy(recipe).cache(model)
    _read(model, cache, ids[:, :60], places[:, :60])
    cache.batch_select_indices(torch.tensor([1]))
    kvpolicy.save(cache, tmp_path / "cache.safetensors")
    loaded = kvpolicy.load(tmp_path / "cache.safetensors", model)
    rest = ids[1:, 60:], places[1:, 60:]
    expected = _read(model, cache.clone(), *rest)
    assert torch.equal(_read(model, loaded, *rest), expected)
    with pytest.raises(InvalidValueError, match=REFUSAL):
        _read(model, cache, ids[:1, 60:], places[:1, 60:])
