"""What people rely on around a cache: its figures, its borders, its refusals."""

import copy

import attrs
import pytest
import torch
from transformers import DynamicCache, T5Config, T5ForConditionalGeneration

import kvpolicy
from kvpolicy.errors import (
    CacheStateError,
    ComponentFailedError,
    InvalidComponentError,
    InvalidValueError,
    UnsupportedModelError,
)
from kvpolicy.testing.models import tiny_model
from kvpolicy.testing.usage import tokens

POLICY = kvpolicy.recipe("snapkv", scorer={"name": "snapkv", "window": 8}, budget=24)


@attrs.frozen
class Faulty:
    """Scores like noise, until a layer at which it does something else."""

    fault: object
    layer: int = 1
    window: int = 8

    def score(self, observation, reduce):
        batch, heads = observation.queries.shape[:2]
        scores = torch.ones(batch, heads, observation.length)
        return self.fault(scores) if observation.layer == self.layer else scores


def faulty(fault, layer=1):
    """A policy whose scorer fails in one layer."""
    return kvpolicy.compose(scorer=Faulty(fault, layer), budget=24)


def fail(scores):
    """Raise what no part should."""
    raise ZeroDivisionError("no reason")


def logits(model, cache, ids):
    """The logits of a forward."""
    return model(input_ids=ids, past_key_values=cache).logits


def test_the_cache_says_what_it_holds():
    model = tiny_model("llama")
    cache = POLICY.cache(model)
    logits(model, cache, tokens(0, batch=2))

    assert cache.get_seq_length() == 60
    assert [held.shape for held in cache.positions] == [(2, 2, 24)] * 2
    assert all(held.dtype == torch.long for held in cache.positions)
    assert all((held.diff(dim=-1) > 0).all() for held in cache.positions)
    assert all((held[..., -8:] == torch.arange(52, 60)).all() for held in cache.positions)
    report = cache.report()
    assert [(layer.seen, layer.held, layer.evicts) for layer in report.layers] == [
        (60, 24, True)
    ] * 2
    assert report.full_nbytes == 2 * 2 * (2 * 2 * 60 * 8 * 4)
    assert str(report).splitlines()[-1].split()[:3] == ["all", "60", "24"]


def test_bytes_are_those_of_the_tensors_held():
    model = tiny_model("llama")
    cache = POLICY.cache(model)
    logits(model, cache, tokens(0))
    keys_and_values = sum(
        layer.keys.untyped_storage().nbytes() + layer.values.untyped_storage().nbytes()
        for layer in cache.policy_layers
    )
    positions = 2 * 24 * 4 * len(cache.policy_layers)

    assert cache.nbytes == keys_and_values + positions
    assert keys_and_values == cache.report().full_nbytes * 24 // 60


def test_a_layer_is_evicted_before_the_next_one_is_filled():
    model, held = tiny_model("llama"), []

    def note(scores):
        held.append([layer.held for layer in cache.policy_layers])
        return scores

    cache = faulty(note).cache(model)
    logits(model, cache, tokens(0))

    assert held == [[24, 60]]


def test_slack_is_bounded_and_appending_copies_nothing():
    model = tiny_model("llama")
    cache = POLICY.cache(model)
    logits(model, cache, tokens(0))
    logits(model, cache, tokens(1, 1))
    layer = cache.policy_layers[0]
    storage = layer.keys.data_ptr()
    for _ in range(10):
        logits(model, cache, tokens(1, 1))

    assert layer.keys.data_ptr() == storage
    assert layer.keys.untyped_storage().nbytes() <= (25 + 16) * 2 * 8 * 4


def test_positions_have_minus_one_behind_a_short_row():
    model = tiny_model("llama")
    cache = POLICY.cache(model)
    mask = torch.ones(2, 60, dtype=torch.long)
    mask[1, :50] = 0
    model(input_ids=tokens(0, batch=2), attention_mask=mask, past_key_values=cache)

    assert cache.positions[0][1, 0].tolist() == [*range(10), *[-1] * 14]


def test_other_caches_of_the_model_stay_bit_for_bit_what_they_were():
    model, ids = tiny_model("qwen3"), tokens(0)
    before = logits(model, DynamicCache(config=model.config), ids)
    cache = POLICY.cache(model)
    logits(model, cache, ids)

    assert torch.equal(logits(model, DynamicCache(config=model.config), ids), before)
    assert torch.equal(logits(model, None, ids), before)


def test_restore_brings_the_model_back_and_refuses_its_caches():
    model = tiny_model("llama")
    cache = POLICY.cache(model)
    logits(model, cache, tokens(0))
    assert model.config._attn_implementation == "kvpolicy_sdpa"

    kvpolicy.restore(model)
    kvpolicy.restore(model)

    assert model.config._attn_implementation == "sdpa"
    with pytest.raises(CacheStateError, match="restored"):
        logits(model, cache, tokens(1, 1))


def test_leaving_with_restores_the_model_unless_another_cache_needs_it():
    model = tiny_model("llama")
    with POLICY.cache(model) as first:
        with POLICY.cache(model) as second:
            logits(model, second, tokens(0))
        logits(model, first, tokens(0))
    assert model.config._attn_implementation == "sdpa"
    with first:
        logits(model, first, tokens(1, 1))
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("layer", [0, 1])
def test_an_exception_in_a_part_is_named_and_leaves_the_model_working(layer):
    model, ids = tiny_model("llama"), tokens(0)
    expected = logits(model, None, ids)
    policy = faulty(fail, layer)

    cache = policy.cache(model)
    message = r"Faulty.*ZeroDivisionError: no reason"
    with pytest.raises(ComponentFailedError, match=message) as info, cache:
        logits(model, cache, ids)

    assert isinstance(info.value.__cause__, ZeroDivisionError)
    assert model.config._attn_implementation == "sdpa"
    assert torch.equal(logits(model, None, ids), expected)
    with cache, pytest.raises(CacheStateError, match=r"no reason.*reset"):
        logits(model, cache, tokens(1, 1))
    with cache:
        cache.reset()
        assert cache.get_seq_length() == 0
        assert cache.nbytes == 0


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lambda scores: scores[..., 1:], r"shape \(1, 4, 59\).*must return shape \(1, 4, 60\)"),
        (lambda scores: scores.double(), "float64.*must return dtype torch.float32"),
        (lambda scores: scores * torch.nan, "NaN"),
        (lambda scores: scores.tolist(), "a list"),
    ],
    ids=["shape", "dtype", "nan", "type"],
)
def test_a_scorer_that_breaks_its_promise_is_named_before_anything_is_evicted(fault, message):
    model = tiny_model("llama")
    cache = faulty(fault, layer=0).cache(model)

    with pytest.raises(InvalidComponentError, match=r"Faulty.*" + message):
        logits(model, cache, tokens(0))

    assert cache.policy_layers[0].held == 60


def test_a_forward_that_stopped_on_its_way_is_noticed():
    model = tiny_model("llama")
    cache = POLICY.cache(model)
    logits(model, cache, tokens(0))
    hook = model.model.layers[0].mlp.register_forward_hook(lambda *_: fail(None))
    with pytest.raises(ZeroDivisionError):
        logits(model, cache, tokens(1, 1))
    hook.remove()

    with pytest.raises(CacheStateError, match="60 to 61 tokens"):
        logits(model, cache, tokens(1, 1))


@pytest.mark.parametrize("pads", [slice(50, None), slice(20, 25)], ids=["right", "inside"])
def test_padding_that_is_not_on_the_left_is_refused(pads):
    model = tiny_model("llama")
    mask = torch.ones(2, 60, dtype=torch.long)
    mask[1, pads] = 0

    with pytest.raises(InvalidValueError, match=r"row 1.*padding_side='left'"):
        model(
            input_ids=tokens(0, batch=2),
            attention_mask=mask,
            past_key_values=POLICY.cache(model),
        )


def test_models_that_cannot_be_served_are_refused_and_left_alone():
    t5 = T5ForConditionalGeneration(
        T5Config(vocab_size=32, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    )
    sliding = tiny_model("mistral", sliding_window=8)
    for model, reason in ((t5, "encoder-decoder"), (sliding, "nothing to evict")):
        found = model.config._attn_implementation
        with pytest.raises(UnsupportedModelError, match=reason):
            POLICY.cache(model)
        assert model.config._attn_implementation == found
    with pytest.raises(UnsupportedModelError, match="not a Linear"):
        POLICY.cache(torch.nn.Linear(1, 1))


def test_assisted_decoding_is_refused_by_name():
    model = tiny_model("llama")

    with pytest.raises(UnsupportedModelError, match="Assisted decoding"):
        model.generate(
            tokens(0),
            attention_mask=torch.ones(1, 60, dtype=torch.long),
            past_key_values=POLICY.cache(model),
            prompt_lookup_num_tokens=2,
            eos_token_id=1,
            max_new_tokens=4,
        )


def test_sliding_window_layers_stay_transformers_own():
    model = tiny_model("gemma3_text")
    cache = POLICY.cache(model)
    logits(model, cache, tokens(0))

    assert [layer.evicts for layer in cache.report().layers] == [False, True] * 2
    assert [layer.held for layer in cache.report().layers] == [15, 24] * 2
    assert cache.positions[0][0, 0].tolist() == [*range(45, 60)]


def test_a_prompt_shorter_than_the_window_passes_through():
    model = tiny_model("llama")
    policy = kvpolicy.compose(scorer={"name": "snapkv", "window": 32}, recent=0, budget=8)
    cache = policy.cache(model)
    logits(model, cache, tokens(0, 20))

    assert [layer.held for layer in cache.policy_layers] == [20, 20]


def test_every_evicts_again_while_decoding():
    model = tiny_model("llama")
    cache = attrs.evolve(POLICY, every=4).cache(model)
    logits(model, cache, tokens(0))
    held = []
    for step in range(9):
        logits(model, cache, tokens(step, 1))
        held.append(cache.policy_layers[0].held)

    assert held == [25, 26, 27, 24, 25, 26, 27, 24, 25]


def test_crop_forgets_the_last_tokens():
    model = tiny_model("llama")
    cache, short = POLICY.cache(model), POLICY.cache(model)
    logits(model, cache, tokens(0))
    logits(model, short, tokens(0))
    for step in range(3):
        logits(model, cache, tokens(step, 1))
    cache.crop(-3)

    assert cache.get_seq_length() == 60
    assert torch.equal(logits(model, cache, tokens(7, 1)), logits(model, short, tokens(7, 1)))
    cache.crop(-9)
    assert cache.policy_layers[0].held == 16
    with pytest.raises(CacheStateError, match="cannot crop"):
        cache.crop(-30)


def test_rows_can_be_reordered_repeated_and_selected():
    model, policy = tiny_model("llama"), attrs.evolve(POLICY, budget=0.4)
    ids, mask = tokens(0, batch=3), torch.ones(3, 60, dtype=torch.long)
    mask[1, :30] = 0
    order = torch.tensor([2, 1, 1])

    def after(change):
        cache = policy.cache(model)
        model(input_ids=ids, attention_mask=mask, past_key_values=cache)
        rows = change(cache)
        new = tokens(5, 1).expand(len(rows), -1)
        longer = torch.cat([mask[rows], torch.ones(len(rows), 1, dtype=torch.long)], 1)
        positions = (longer.cumsum(1) - 1)[:, -1:]
        output = model(
            input_ids=new, attention_mask=longer, position_ids=positions, past_key_values=cache
        )
        return output.logits, cache.positions[0]

    expected, positions = after(lambda cache: torch.arange(3))
    for change in (
        lambda cache: (cache.reorder_cache(order), order)[1],
        lambda cache: (cache.batch_select_indices(order), order)[1],
        lambda cache: (cache.batch_repeat_interleave(2), torch.arange(3).repeat_interleave(2))[1],
    ):
        rows = change(policy.cache(model))
        changed, moved = after(change)
        torch.testing.assert_close(changed, expected[rows], atol=1e-5, rtol=0)
        assert torch.equal(moved, positions[rows])


def test_a_deep_copy_goes_its_own_way():
    model = tiny_model("llama")
    cache = POLICY.cache(model)
    logits(model, cache, tokens(0))
    twin = copy.deepcopy(cache)
    first = logits(model, cache, tokens(1, 1))
    logits(model, cache, tokens(2, 9))

    assert torch.equal(logits(model, twin, tokens(1, 1)), first)
    assert twin.policy is cache.policy


def test_inference_mode_and_gradients_may_alternate():
    model = tiny_model("llama")
    cache, plain = POLICY.cache(model), POLICY.cache(model)
    expected = [logits(model, plain, tokens(seed, length)) for seed, length in ((0, 60), (1, 1))]
    with torch.inference_mode():
        first = logits(model, cache, tokens(0))
    with torch.enable_grad():
        second = logits(model, cache, tokens(1, 1))

    assert second.requires_grad
    assert torch.equal(first, expected[0])
    assert torch.equal(second, expected[1])
    assert not cache.policy_layers[0].keys.requires_grad


def test_keys_that_change_on_their_way_to_attention_are_noticed_in_the_first_forward():
    model = tiny_model("llama")
    cache = POLICY.cache(model)
    update = cache.update
    cache.update = lambda *args, **kwargs: tuple(kept * 1 for kept in update(*args, **kwargs))

    with pytest.raises(UnsupportedModelError, match="layer 0 changed its keys"):
        logits(model, cache, tokens(0))


def test_attention_that_is_not_causal_is_refused():
    model = tiny_model("llama")
    model.model.layers[0].self_attn.is_causal = False

    with pytest.raises(UnsupportedModelError, match="not causal"):
        logits(model, POLICY.cache(model), tokens(0))


def test_a_retry_after_an_interrupted_forward_is_refused_on_hybrid_models():
    model = tiny_model("gemma2", attn_implementation="eager")
    cache = POLICY.cache(model)
    logits(model, cache, tokens(0))
    hook = model.model.layers[0].mlp.register_forward_hook(lambda *_: fail(None))
    with pytest.raises(ZeroDivisionError):
        logits(model, cache, tokens(1, 5))
    hook.remove()

    with pytest.raises(CacheStateError, match="60 to 65 tokens"):
        logits(model, cache, tokens(1, 5))


def test_a_mask_may_not_hide_tokens_that_were_read():
    model = tiny_model("llama")
    cache = POLICY.cache(model)
    logits(model, cache, tokens(0, batch=2))
    mask = torch.ones(2, 65, dtype=torch.long)
    mask[1, 55:58] = 0

    with pytest.raises(InvalidValueError, match="earlier tokens"):
        model(input_ids=tokens(1, 5, 2), attention_mask=mask, past_key_values=cache)


def test_a_padded_batch_may_not_go_on_without_its_mask():
    model = tiny_model("llama")
    cache = POLICY.cache(model)
    mask = torch.ones(2, 20, dtype=torch.long)
    mask[1, :15] = 0
    model(input_ids=tokens(0, 20, 2), attention_mask=mask, past_key_values=cache)

    with pytest.raises(InvalidValueError, match="needs its attention_mask"):
        logits(model, cache, tokens(1, 1, 2))


def test_crop_forgets_the_queries_of_what_it_forgets():
    model, shown = tiny_model("llama"), []

    @attrs.frozen
    class Watching:
        window: int = 8

        def score(self, observation, reduce):
            shown.append((observation.window, observation.seen))
            return observation.folded_attention(reduce)

    cache = kvpolicy.compose(scorer=Watching(), budget=24, every=6).cache(model)
    logits(model, cache, tokens(0))
    for step in range(4):
        logits(model, cache, tokens(step, 1))
    cache.crop(-3)
    for step in range(5):
        logits(model, cache, tokens(step, 1))

    assert shown == [(8, 60)] * 2 + [(6, 66)] * 2


def test_a_crop_that_one_layer_cannot_follow_leaves_all_as_they_are():
    hybrid = tiny_model("gemma3_text", layer_types=["full_attention", "sliding_attention"] * 2)
    cache = POLICY.cache(hybrid)
    logits(hybrid, cache, tokens(0))

    with pytest.raises(CacheStateError, match="sliding window of 16"):
        cache.crop(-2)

    assert [layer.seen for layer in cache.report().layers] == [60] * 4
    model = tiny_model("llama")
    cache, mask = POLICY.cache(model), torch.ones(2, 20, dtype=torch.long)
    mask[1, :17] = 0
    model(input_ids=tokens(0, 20, 2), attention_mask=mask, past_key_values=cache)
    with pytest.raises(CacheStateError, match="3 to 5 of them"):
        cache.crop(-5)
    assert cache.get_seq_length() == 20


def test_withs_may_overlap_in_any_order():
    model = tiny_model("llama")
    first, second = POLICY.cache(model), POLICY.cache(model)
    with first:
        logits(model, first, tokens(0))
    with second, second:
        logits(model, second, tokens(0))

    assert model.config._attn_implementation == "sdpa"


def test_a_compactor_that_breaks_its_promise_is_named():
    model = tiny_model("llama")

    def kept(change):
        @attrs.frozen
        class Careless:
            def compact(self, keys, values, selection):
                return change(*POLICY.compactor.compact(keys, values, selection))

        return attrs.evolve(POLICY, compactor=Careless()).cache(model)

    for change, message in (
        (lambda keys, values: (keys, values[:, :, 1:]), r"float32 \(1, 2, 23, 8\)"),
        (lambda keys, values: (keys.half(), values), "float16"),
        (lambda keys, values: None, "a NoneType"),
    ):
        with pytest.raises(InvalidComponentError, match=f"Careless returned .*{message}"):
            logits(model, kept(change), tokens(0))


def test_a_selector_that_drops_protected_tokens_is_named():
    @attrs.frozen
    class Forgetful:
        def select(self, scores, budgets):
            return POLICY.selector.select(-scores.clamp(max=9.0), budgets)

    model = tiny_model("llama")
    with pytest.raises(InvalidComponentError, match=r"Forgetful .*all sinks and recent tokens"):
        logits(model, attrs.evolve(POLICY, selector=Forgetful()).cache(model), tokens(0))


def test_a_changed_output_projection_is_noticed():
    model = tiny_model("llama")
    policy = kvpolicy.recipe("restkv", scorer={"name": "restkv", "window": 8}, budget=24)

    def positions():
        cache = policy.cache(model)
        logits(model, cache, tokens(0))
        return cache.positions[0]

    before = positions()
    model.model.layers[0].self_attn.o_proj.weight.data[:, :8] *= 100
    changed = positions()
    model.model.layers[0].self_attn.o_proj.weight.data[:, :8] /= 100

    assert not torch.equal(before, changed)
