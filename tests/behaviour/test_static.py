"""Steps of a static cache decode what another cache decodes; what they cannot follow is refused."""

import attrs
import jaxtyping
import pytest
import torch

import kvpolicy
from kvpolicy.errors import CacheStateError, InvalidValueError, UnsupportedModelError
from kvpolicy.exactness.limits import LIMIT
from kvpolicy.exactness.usages import small_policy
from kvpolicy.exactness.usages.inputs import difference, generate, padded, read, tokens
from kvpolicy.exactness.usages.modes import static_cache
from kvpolicy.testing.models import tiny_model

NEVER = ("snapkv", "pyramidkv", "restkv", "adakv", "layerdefensivekv", "expectedattention")
EVERY_TOKEN = ("streamingllm", "tova", "h2o", "keydiff", "lookm")
TURNS = (60, *[1] * 12)
# Each takes some seconds to compile.
SLOW = [pytest.param(name, marks=pytest.mark.deep) for name in ("adakv", "streamingllm", "tova")]


def static(policy, model, capacity=20, **options):
    return policy.cache(model, static=True, capacity=capacity, **options)


@pytest.fixture
def model():
    return tiny_model()


@pytest.fixture
def unchecked():
    """Compiled code cannot look into the checks of shapes that the tests put around functions."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.sampled(3, "recipe")
@pytest.mark.parametrize("recipe", NEVER + EVERY_TOKEN)
def test_steps_decode_what_another_cache_decodes(recipe, model):
    policy = small_policy(recipe)
    cache, other = static(policy, model), policy.cache(model)
    assert difference(read(model, cache, TURNS), read(model, other, TURNS)) <= LIMIT
    assert cache.is_compileable
    assert cache.seen == other.seen
    for ours, theirs in zip(cache.positions, other.positions, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.sampled(5, "attention", "recipe", "lengths")
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("recipe", ["snapkv", "adakv", "streamingllm", "tova"])
@pytest.mark.parametrize("lengths", [(60, 41), (60, 9)])
def test_rows_of_a_padded_batch_decode_what_they_do_elsewhere(recipe, lengths, attention):
    model = tiny_model(attn_implementation=attention)
    policy = small_policy(recipe)
    if policy.every is None:
        policy = attrs.evolve(policy, budget=0.4)
    ids, mask = padded(lengths)

    def logits(cache, mask=mask):
        places = (mask.cumsum(1) - 1).clamp(min=0)
        found = [
            model(ids, attention_mask=mask, position_ids=places, past_key_values=cache).logits[
                :, -1
            ]
        ]
        for turn in range(5):
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
            found.append(
                model(
                    tokens(turn, 1, batch=2),
                    attention_mask=mask,
                    position_ids=mask.sum(1, keepdim=True) - 1,
                    past_key_values=cache,
                ).logits
            )
        return found

    assert difference(logits(static(policy, model)), logits(policy.cache(model))) <= LIMIT


@pytest.mark.parametrize("recipe", ["snapkv", *SLOW])
def test_a_compiled_step_decodes_the_next_position_each_time(recipe, unchecked):
    torch._dynamo.reset()
    model, policy = tiny_model(), small_policy(recipe)
    turns = (60, *[1] * 100)
    with policy.cache(model) as other:
        expected = read(model, other, turns)
    cache = static(policy, model, capacity=100)
    # "eager" runs the captured graph unchanged, so a difference is one of the capture.
    step = torch.compile(model, backend="eager", fullgraph=True)
    found = read(model, cache, turns[:1])
    found += read(step, cache, turns[1:2], first_seed=1)
    with torch._dynamo.config.patch(error_on_recompile=True):
        found += read(step, cache, turns[2:], first_seed=2)
    assert difference(found, expected) <= LIMIT
    assert cache.seen == 160


@pytest.mark.deep
@pytest.mark.parametrize("recipe", ["snapkv", "adakv", "streamingllm", "h2o"])
def test_inductor_compiles_a_step_once_for_several_conversations(recipe, unchecked):
    torch._dynamo.reset()
    model, policy = tiny_model(), small_policy(recipe)
    turns = (60, *[1] * 10)
    with policy.cache(model) as other:
        expected = read(model, other, turns)
    cache, step = static(policy, model), torch.compile(model, fullgraph=True)
    first = read(model, cache, turns[:1]) + read(step, cache, turns[1:], first_seed=1)
    cache.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        again = read(model, cache, turns[:1]) + read(step, cache, turns[1:], first_seed=1)
    assert difference(first, expected) <= LIMIT
    assert difference(again, first) == 0


@pytest.mark.deep
def test_the_column_of_the_exactness_table_is_exact(unchecked):
    assert static_cache(tiny_model(), small_policy("restkv")) <= LIMIT


@pytest.mark.sampled(4, "recipe", "beams")
@pytest.mark.parametrize("recipe", ["snapkv", "adakv", "streamingllm", "tova"])
@pytest.mark.parametrize("beams", [1, 3])
def test_generate_gives_the_same_text(recipe, beams, model):
    policy = small_policy(recipe)
    found = generate(model, static(policy, model), tokens(1), num_beams=beams)
    assert torch.equal(found, generate(model, policy.cache(model), tokens(1), num_beams=beams))


@pytest.mark.sampled(4, "recipe")
@pytest.mark.parametrize("recipe", ["snapkv", "adakv", "streamingllm", "h2o"])
def test_turns_copies_crops_and_files_go_on_as_elsewhere(recipe, model, tmp_path):
    policy = small_policy(recipe)

    def used(cache):
        found = read(model, cache, (60, 1, 1))
        cache.batch_repeat_interleave(2)
        cache.batch_select_indices(torch.tensor([1]))
        cache.crop(-1)
        found += read(model, cache, (1, 1, 20, 1, 1), first_seed=3)
        twin = cache.clone()
        cache.save(tmp_path / "cache.safetensors")
        found += read(model, cache, (1, 1), first_seed=9) + read(model, twin, (1, 1), first_seed=9)
        loaded = kvpolicy.load(tmp_path / "cache.safetensors", model)
        return found + read(model, loaded, (1, 1), first_seed=9)

    assert difference(used(static(policy, model)), used(policy.cache(model))) <= LIMIT


def test_a_reset_uses_the_buffers_again(model):
    cache = static(small_policy("snapkv"), model)
    first = read(model, cache, (60, 1, 1))
    places = [layer.memory.step.keys.data_ptr() for layer in cache.layers]
    cache.reset()
    assert cache.seen == 0
    assert difference(read(model, cache, (60, 1, 1)), first) == 0
    assert [layer.memory.step.keys.data_ptr() for layer in cache.layers] == places


def test_generate_is_refused_more_than_the_capacity_before_it_begins(model):
    policy = small_policy("snapkv")
    cache = static(policy, model, capacity=5)
    with pytest.raises(InvalidValueError, match="room for 5"):
        generate(model, cache, tokens(0), max_new_tokens=7)
    assert cache.seen == 0
    found = generate(model, cache, tokens(0), max_new_tokens=6)
    assert torch.equal(found, generate(model, policy.cache(model), tokens(0), max_new_tokens=6))
    assert cache.left == 0
    with pytest.raises(InvalidValueError, match="room for 0"):
        generate(model, cache, found, max_new_tokens=1)


def test_a_token_without_room_is_refused_before_it_is_read(model):
    cache = static(small_policy("adakv"), model, capacity=2)
    read(model, cache, (60, 1, 1))
    with pytest.raises(InvalidValueError, match="capacity=2"):
        read(model, cache, (1,))
    assert cache.seen == 62
    # A prompt makes room again.
    read(model, cache, (20, 1, 1))


@pytest.mark.parametrize("recipe", ["knorm", "adakv", "streamingllm"])
def test_a_ready_mask_of_a_step_is_refused_before_the_token_is_read(recipe, model):
    cache, undisturbed = (static(small_policy(recipe), model) for _ in range(2))
    step, mask = tokens(1, 1), torch.ones(1, 1, 1, 61, dtype=torch.bool)
    for each in (cache, undisturbed):
        model(tokens(0), past_key_values=each)
    with pytest.raises(InvalidValueError, match="given ready"):
        model(step, attention_mask=mask, past_key_values=cache)
    expected = model(step, past_key_values=undisturbed).logits
    assert torch.equal(model(step, past_key_values=cache).logits, expected)


@pytest.mark.parametrize("recipe", ["knorm", "adakv", "streamingllm"])
def test_a_mask_that_hides_older_tokens_from_a_step_is_refused(recipe, model):
    cache, undisturbed = (static(small_policy(recipe), model) for _ in range(2))
    for each in (cache, undisturbed):
        read(model, each, (60, 1))
    step, mask = tokens(1, 1), torch.ones(1, 62, dtype=torch.long)
    hidden = mask.clone()
    hidden[:, :30] = 0
    with pytest.raises(InvalidValueError, match="did not say when they were read"):
        model(step, attention_mask=hidden, past_key_values=cache)
    expected = model(step, past_key_values=undisturbed).logits
    found = model(step, attention_mask=mask, past_key_values=cache).logits
    assert torch.equal(found, expected)


@pytest.mark.parametrize("recipe", ["knorm", "adakv", "streamingllm"])
def test_a_step_of_another_batch_is_refused_before_it_is_read(recipe, model):
    cache, undisturbed = (static(small_policy(recipe), model) for _ in range(2))
    for each in (cache, undisturbed):
        read(model, each, (60, 1))
    with pytest.raises(InvalidValueError, match="has 1 rows, but 3 rows were given"):
        model(tokens(1, 1, 3), past_key_values=cache)
    expected = model(tokens(1, 1), past_key_values=undisturbed).logits
    assert torch.equal(model(tokens(1, 1), past_key_values=cache).logits, expected)


def test_a_closed_cache_refuses_a_step(model):
    cache = static(small_policy("snapkv"), model)
    read(model, cache, (60, 1))
    kvpolicy.restore(model)
    with pytest.raises(CacheStateError, match="was closed"):
        read(model, cache, (1,))


def test_blocks_apply_static_caches(model):
    policy = small_policy("snapkv")
    with policy.applied(model, static=True, capacity=7):
        found = model.generate(tokens(1), max_new_tokens=8, do_sample=False)
    with policy.applied(model):
        assert torch.equal(found, model.generate(tokens(1), max_new_tokens=8, do_sample=False))


REFUSED = {
    "no capacity": (small_policy("snapkv"), {"capacity": None}, "needs capacity"),
    "capacity alone": (small_policy("snapkv"), {"static": False}, "for static=True only"),
    "capacity of another kind": (small_policy("snapkv"), {"capacity": 0}, "of at least 1, not 0"),
    "another flag": (small_policy("snapkv"), {"static": 1}, "'static' must be True or False"),
    "a storage": (small_policy("snapkv"), {"storage": "offloaded"}, "does not go with"),
    "every fifth token": (small_policy("snapkv", every=5), {}, "every=5"),
    "a share": (small_policy("tova", budget=0.4), {}, "budget=0.4 may keep"),
    "slots": (small_policy("snapkv", slot_positions=True), {}, "slot_positions=True"),
    "running state": (small_policy("h2o", every=None), {}, "running state"),
    "counts that vary": (small_policy("lacache"), {}, "allocator 'lacache'"),
    "draws of the host": (small_policy("cam"), {}, "compactor 'cam'"),
    "uneven heads": (small_policy("snapkv", allocator="adakv", every=1), {}, "allocator 'adakv'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_step_cannot_follow_is_refused_by_name(name, model):
    policy, options, message = REFUSED[name]
    with pytest.raises(InvalidValueError, match=message):
        policy.cache(model, **{"static": True, "capacity": 20} | options)


def test_models_with_other_layers_are_refused():
    with pytest.raises(UnsupportedModelError, match="DynamicSlidingWindowLayer"):
        static(small_policy("snapkv"), tiny_model("gemma3_text"))


@torch.enable_grad()
def test_gradients_are_refused(model):
    cache = static(small_policy("snapkv"), model)
    with torch.no_grad():
        read(model, cache, (60, 1))
    with pytest.raises(InvalidValueError, match="no gradients"):
        read(model, cache, (1,))
