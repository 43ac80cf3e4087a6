"""Models that cache latents: all heads keep a position, or none does, and logits are exact."""

import pytest
import torch

import kvpolicy
from kvpolicy.errors import UnsupportedModelError
from kvpolicy.exactness.architectures import tiny_architecture
from kvpolicy.exactness.limits import LIMIT
from kvpolicy.exactness.usages import BITWISE, USAGES, small_policy, tokens
from kvpolicy.stages.compaction import GatherCompactor

TYPES = ("deepseek_v2", "deepseek_v3", "minicpm3")
APART = ("adakv", "defensivekv", "kvzip", "kvzipplus", "layerdefensivekv")
CHANGING = ("cam", "lookm", "momentkv", "think")
ROTATING = (
    "streamingllm",
    "lacache",
    "expectedattention",
    "capkv",
    "dapq",
    "replay",
    "triattention",
)
SERVED = [
    part.name
    for part in kvpolicy.installed("recipe")
    if part.name not in (*APART, *CHANGING, *ROTATING)
]


@pytest.fixture(scope="module")
def model():
    return tiny_architecture("deepseek_v3")


@pytest.mark.sampled(17, "model_type", "usage")
@pytest.mark.parametrize("usage", USAGES)
@pytest.mark.parametrize("model_type", TYPES)
def test_every_usage_is_exact(model_type, usage):
    difference = USAGES[usage](tiny_architecture(model_type), small_policy("restkv"))
    assert difference <= (0 if usage in BITWISE else LIMIT)


@pytest.mark.sampled(41, "recipe", "usage")
@pytest.mark.parametrize("usage", USAGES)
@pytest.mark.parametrize("recipe", SERVED)
def test_every_usage_is_exact_under_every_recipe_that_is_served(model, recipe, usage):
    assert USAGES[usage](model, small_policy(recipe)) <= LIMIT


def test_the_cache_holds_latents_and_counts_their_bytes(model):
    cache = small_policy("snapkv").cache(model)
    model(input_ids=tokens(0), past_key_values=cache)
    config, (layer, *_) = model.config, cache.policy_layers

    assert layer.keys.shape == (1, 1, 24, config.kv_lora_rank)
    assert layer.values.shape == (1, 1, 24, config.qk_rope_head_dim)
    assert layer.full_nbytes == 60 * 4 * (config.kv_lora_rank + config.qk_rope_head_dim)
    assert layer.nbytes < layer.full_nbytes
    assert layer.positions.shape == (1, 1, 24)


class Spy:
    """Scores by what one head alone attends to, and keeps what it was shown."""

    window = 8

    def __init__(self):
        self.shown = []

    def score(self, observation, reduce):
        self.shown.append(observation)
        return observation.folded_attention(reduce)


def test_parts_are_shown_the_keys_and_values_of_every_head_that_the_model_attends_to(model):
    spy, seen = Spy(), []
    policy = small_policy("snapkv", scorer=spy)
    attention = model.model.layers[0].self_attn
    own = type(attention).expand_kv
    hook = attention.register_forward_pre_hook(lambda *_: None)
    try:
        type(attention).expand_kv = lambda self, *rows: seen.append(own(self, *rows)) or seen[-1]
        cache = policy.cache(model)
        model(input_ids=tokens(0), past_key_values=cache)
        cache.close()
    finally:
        type(attention).expand_kv = own
        hook.remove()
    config, (keys, values) = model.config, seen[0]
    heads = config.num_attention_heads
    shown = spy.shown[0]

    assert shown.kept_together
    assert shown.keys.shape[1] == shown.values.shape[1] == shown.positions.shape[1] == heads
    torch.testing.assert_close(shown.keys, keys, rtol=0, atol=0)
    torch.testing.assert_close(shown.values, values, rtol=0, atol=0)
    assert shown.output_weight is attention.o_proj.weight


@pytest.mark.parametrize("group", ["mean", "max"])
def test_the_positions_that_are_kept_are_those_with_the_best_score_of_all_heads(model, group):
    spy = Spy()
    policy = small_policy("snapkv", scorer=spy, group=group, smoother="mean", recent=0)
    cache = policy.cache(model)
    model(input_ids=tokens(0), past_key_values=cache)
    for layer, shown in zip(cache.policy_layers, spy.shown, strict=True):
        by_head = shown.attention[:, :, -spy.window :].mean(2)
        of_all = by_head.mean(1) if group == "mean" else by_head.amax(1)
        best = of_all[0].topk(24).indices.sort().values
        assert layer.positions[0, 0].tolist() == best.tolist()


@pytest.mark.parametrize("recipe", APART)
def test_recipes_that_need_heads_apart_are_refused_by_name(model, recipe):
    with pytest.raises(UnsupportedModelError, match="all heads keep a position, or none"):
        small_policy(recipe).cache(model)


def test_a_table_of_heads_is_refused_by_name(model):
    table = {"name": "headkv", "importance": [[1, 2, 3, 4]] * 4}
    with pytest.raises(UnsupportedModelError, match=r"allocator 'headkv' .* latents"):
        small_policy("snapkv", allocator=table).cache(model)


@pytest.mark.parametrize("recipe", CHANGING)
def test_recipes_that_change_what_is_kept_are_refused_by_name(model, recipe):
    with pytest.raises(UnsupportedModelError, match="compactor='gather'"):
        small_policy(recipe).cache(model)


@pytest.mark.parametrize("recipe", ROTATING)
def test_recipes_that_turn_keys_or_queries_are_refused_by_name(model, recipe):
    with pytest.raises(UnsupportedModelError, match=r"slot_positions=False|rotary embedding"):
        small_policy(recipe).cache(model)


def test_the_model_is_left_as_it_was_found(model):
    own = type(model.model.layers[0].self_attn).expand_kv
    with small_policy("snapkv").cache(model):
        assert type(model.model.layers[0].self_attn).expand_kv is not own
    assert type(model.model.layers[0].self_attn).expand_kv is own


def test_a_padded_question_on_one_context_moves_latents(model):
    context, (short, long) = tokens(0), (tokens(1, 5), tokens(2, 9))
    mask = torch.ones(2, 69, dtype=torch.long)
    mask[0, 60:64] = 0
    questions = torch.cat([torch.nn.functional.pad(short, (4, 0)), long])
    both = small_policy("snapkv").cache(model)
    model(input_ids=context, past_key_values=both)
    both.batch_repeat_interleave(2)
    found = model(
        input_ids=questions,
        attention_mask=mask,
        position_ids=(mask.cumsum(1) - 1)[:, 60:].clamp(min=0),
        past_key_values=both,
    ).logits
    for row, question in enumerate((short, long)):
        alone = small_policy("snapkv").cache(model)
        model(input_ids=context, past_key_values=alone)
        expected = model(input_ids=question, past_key_values=alone).logits
        assert (found[row, -question.shape[1] :] - expected[0]).abs().max() <= LIMIT


def test_changing_recipes_are_those_that_do_not_gather():
    for part in kvpolicy.installed("recipe"):
        gathers = isinstance(small_policy(part.name).compactor, GatherCompactor)
        assert gathers is (part.name not in CHANGING)
