"""Steps of a static cache decode what another cache decodes."""

import attrs
import jaxtyping
import pytest
import torch

import kvpolicy
from kvpolicy.exactness.limits import LIMIT
from kvpolicy.exactness.usages import small_policy
from kvpolicy.exactness.usages.inputs import difference, generate, padded, read, tokens
from kvpolicy.exactness.usages.modes import static_cache
from kvpolicy.testing.models import tiny_model
from tests.behaviour.static_caches import static

NEVER = ("snapkv", "pyramidkv", "restkv", "adakv", "layerdefensivekv", "expectedattention")
EVERY_TOKEN = ("streamingllm", "tova", "h2o", "keydiff", "lookm")
TURNS = (60, *[1] * 12)
# Each takes some seconds to compile.
SLOW = [pytest.param(name, marks=pytest.mark.deep) for name in ("adakv", "streamingllm", "tova")]


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


def test_blocks_apply_static_caches(model):
    policy = small_policy("snapkv")
    with policy.applied(model, static=True, capacity=7):
        found = model.generate(tokens(1), max_new_tokens=8, do_sample=False)
    with policy.applied(model):
        assert torch.equal(found, model.generate(tokens(1), max_new_tokens=8, do_sample=False))
