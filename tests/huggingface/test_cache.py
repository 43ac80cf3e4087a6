"""What a cache holds, says and lets one do."""

import copy
import io
import pickle

import attrs
import pytest
import torch

import kvpolicy
from kvpolicy.errors import CacheFileError, CacheStateError
from kvpolicy.exactness.usages import tokens
from kvpolicy.testing.models import tiny_model

POLICY = kvpolicy.recipe("snapkv", scorer={"name": "snapkv", "window": 8}, budget=24)


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


def test_a_layer_is_evicted_before_the_next_one_is_filled():
    model, held = tiny_model("llama"), []

    @attrs.frozen
    class Watching:
        window: int = 8

        def score(self, observation, reduce):
            held.append([layer.held for layer in cache.policy_layers])
            return observation.folded_attention(reduce)

    cache = kvpolicy.compose(scorer=Watching(), budget=24).cache(model)
    logits(model, cache, tokens(0))

    assert held == [[60, 0], [24, 60]]


def test_positions_have_minus_one_behind_a_short_row():
    model = tiny_model("llama")
    cache = POLICY.cache(model)
    mask = torch.ones(2, 60, dtype=torch.long)
    mask[1, :50] = 0
    model(input_ids=tokens(0, batch=2), attention_mask=mask, past_key_values=cache)

    assert cache.positions[0][1, 0].tolist() == [*range(10), *[-1] * 14]


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
        second.sum().backward()

    assert torch.equal(first, expected[0])
    assert torch.equal(second, expected[1])
    assert model.model.embed_tokens.weight.grad is not None


def test_sliding_window_layers_stay_transformers_own():
    model = tiny_model("gemma3_text")
    cache = POLICY.cache(model)
    logits(model, cache, tokens(0))

    assert [layer.evicts for layer in cache.report().layers] == [False, True] * 2
    assert [layer.held for layer in cache.report().layers] == [15, 24] * 2
    assert cache.positions[0][0, 0].tolist() == [*range(45, 60)]


def test_a_copy_made_inside_with_restores_the_model_too():
    model = tiny_model("llama")
    with POLICY.cache(model) as cache:
        twin = copy.deepcopy(cache)
    with twin:
        logits(model, twin, tokens(0))

    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize(
    "use",
    [pickle.dumps, copy.copy, lambda cache: torch.save(cache, io.BytesIO())],
    ids=["pickle", "copy", "torch.save"],
)
def test_pickling_is_refused_and_names_what_works(use):
    model = tiny_model("llama")
    cache = POLICY.cache(model)
    logits(model, cache, tokens(0))
    with pytest.raises(CacheFileError, match=r"kvpolicy.save\(cache, path\).* cache.clone\(\)"):
        use(cache)
    logits(model, cache, tokens(1, 1))
