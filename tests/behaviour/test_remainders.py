"""One more row of each head stands for what the head has evicted: exact, counted, never lost."""

import pytest
import torch
from transformers import DynamicCache

import kvpolicy
from kvpolicy.cache.memory.remainder import Remainder
from kvpolicy.errors import (
    CacheFileError,
    CacheStateError,
    InvalidValueError,
)
from kvpolicy.exactness import replay
from kvpolicy.exactness.architectures import tiny_architecture
from kvpolicy.exactness.limits import limit_of
from kvpolicy.exactness.usages import BITWISE, MODES, USAGES, WAYS, small_policy, tokens
from kvpolicy.exactness.usages.inputs import replayed
from kvpolicy.huggingface.size import cache_size, model_shape
from kvpolicy.testing.models import tiny_model

LIMIT = 1e-4
POLICIES = {
    "uniform": lambda: small_policy("momentkv"),
    "every=3": lambda: small_policy("momentkv", every=3),
    "share": lambda: small_policy("momentkv", budget=0.6),
    "uneven": lambda: small_policy("adakv", compactor="momentkv"),
    "uneven, every=2": lambda: small_policy("adakv", compactor="momentkv", every=2),
    "whole model": lambda: small_policy("layerdefensivekv", compactor="momentkv"),
    "running state": lambda: small_policy("h2o", compactor="momentkv"),
}


@pytest.fixture(autouse=True)
def _quiet():
    with torch.no_grad():
        yield


def read(model, cache, *counts, batch=1):
    """Read turns of so many tokens."""
    for turn, count in enumerate(counts):
        output = model(input_ids=tokens(turn, count, batch), past_key_values=cache)
    return output.logits


@pytest.mark.sampled(9, "policy", "usage")
@pytest.mark.parametrize("usage", USAGES)
@pytest.mark.parametrize("policy", POLICIES)
def test_every_usage_is_exact(policy, usage):
    difference = USAGES[usage](tiny_model(), POLICIES[policy]())
    assert difference <= (0 if usage in BITWISE else LIMIT)


# Attention weights are refused: tests/behaviour/test_refused_remainders.py.
HOW = [
    pytest.param(way, marks=[pytest.mark.deep] if way == "compiled" else [])
    for way in sorted(set(MODES | WAYS) - {"output attentions"})
]


# PEFT calls a property of transformers by its old name, which warns.
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("way", HOW)
def test_every_way_and_mode_is_exact(way):
    difference = (MODES | WAYS)[way](tiny_model(), small_policy("momentkv"))
    assert difference <= (0 if way in BITWISE else LIMIT)


@pytest.mark.parametrize(
    "kind", ["gemma2", "gemma3_text", "gpt_oss", "gemma3n_text", "gemma4_text", "zamba2"]
)
def test_models_with_caps_sinks_windows_and_shared_keys_are_exact(kind):
    attention = "eager" if kind in ("gemma2", "gpt_oss") else "sdpa"
    model = tiny_architecture(kind, attn_implementation=attention)
    for policy in (small_policy("momentkv"), small_policy("snapkv", compactor="momentkv")):
        for usage in ("five turns", "left padded batch"):
            assert USAGES[usage](model, policy) <= limit_of(model)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_exact_and_the_means_are_float32(dtype):
    model = tiny_model().to(dtype)
    policy = small_policy("momentkv", every=1)
    assert USAGES["five turns"](model, policy) <= limit_of(model)
    cache = policy.cache(model)
    read(model, cache, 60)
    assert cache.policy_layers[0].remainder.keys.dtype == torch.float32


@pytest.mark.parametrize("fault", ["none is seen", "one is counted twice", "a newer one replaces"])
def test_the_yardstick_sees_a_remainder_that_is_wrong(fault, monkeypatch):
    if fault == "none is seen":
        monkeypatch.setattr(replay, "is_averaging", lambda compactor: False)
    elif fault == "one is counted twice":
        whole = Remainder.bias
        twice = property(lambda self: whole.fget(self) + (1 + 1 / self.counts).log())
        monkeypatch.setattr(Remainder, "bias", twice)
    else:
        monkeypatch.setattr(Remainder, "with_more", lambda self, newer: newer)
    assert USAGES["five turns"](tiny_model(), small_policy("momentkv")) > LIMIT


def concatenated(full, cache, layer, seen):
    """The mean of what is not held, and the rows that are, of a full cache: [1, N, 1 + K, D]."""
    held = cache.positions[layer][0]
    rows = []
    for table in (full.layers[layer].keys, full.layers[layer].values):
        of_heads = []
        for head, own in enumerate(held.tolist()):
            gone = sorted(set(range(seen)) - set(own))
            mean = table[0, head, gone].double().mean(0).float()
            of_heads.append(torch.cat([mean[None], table[0, head, own]]))
        rows.append(torch.stack(of_heads)[None])
    return rows


def test_decoded_logits_are_those_of_eager_attention_over_concatenated_rows():
    model, policy = tiny_model(attn_implementation="eager"), small_policy("momentkv")
    cache, full = policy.cache(model), DynamicCache()
    read(model, cache, 60)
    with kvpolicy.compose(scorer="snapkv", budget=1.0).cache(model):
        model(input_ids=tokens(0, 60), past_key_values=full)
    rows = DynamicCache()
    for layer in range(len(cache.policy_layers)):
        rows.update(*concatenated(full, cache, layer, 60), layer)
    gone = 60 - cache.positions[0].shape[-1]
    assert gone == 60 - (policy.budget - 1)
    for step in range(4):
        token = tokens(9 + step, 1)
        # What is added to the logits: log(n) for the first row, nothing for the others.
        bias = torch.zeros(1, 1, 1, rows.get_seq_length() + 1)
        bias[..., 0] = torch.tensor(float(gone)).log()
        expected = model(
            input_ids=token,
            past_key_values=rows,
            attention_mask=bias,
            position_ids=torch.tensor([[60 + step]]),
        )
        actual = model(input_ids=token, past_key_values=cache)
        torch.testing.assert_close(actual.logits, expected.logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("policy", POLICIES)
def test_each_evicted_position_is_in_the_mean_once(policy):
    model, policy = tiny_model(), POLICIES[policy]()
    cache = policy.cache(model)
    counts = (60, *[1] * 7, 30, *[1] * 5)
    seen = sum(counts)
    read(model, cache, *counts)
    # Layer 0 sees the same keys and values in both caches: those of its tokens.
    full = DynamicCache()
    read(model, full, *counts)
    found = cache.policy_layers[0].remainder
    for head, held in enumerate(cache.positions[0][0].tolist()):
        gone = sorted(set(range(seen)) - set(held))
        assert int(found.counts[0, head]) == len(gone) > 0
        pairs = ((found.keys, full.layers[0].keys), (found.values, full.layers[0].values))
        for mean, rows in pairs:
            expected = rows[0, head, gone].double().mean(0).float()
            torch.testing.assert_close(mean[0, head], expected, rtol=1e-5, atol=1e-5)


def test_the_row_is_part_of_the_budget():
    model, policy = tiny_model(), small_policy("momentkv", budget=24)
    cache = policy.cache(model)
    read(model, cache, 24)
    assert [each.shape[-1] for each in cache.positions] == [24, 24]
    assert cache.policy_layers[0].remainder is None
    read(model, cache, 2)
    assert [each.shape[-1] for each in cache.positions] == [23, 23]
    assert (cache.policy_layers[0].remainder.counts == 3).all()


def test_bytes_are_those_of_one_row_more():
    model = tiny_model()
    with_row, without = small_policy("momentkv", budget=25), small_policy("restkv", budget=24)
    caches = [policy.cache(model) for policy in (with_row, without)]
    for cache in caches:
        read(model, cache, 60)
    # Of 2 layers and 2 heads: a key and a value of 8 floats, and a count of 8 bytes.
    assert caches[0].nbytes - caches[1].nbytes == 2 * 2 * (2 * 8 * 4 + 8)
    assert caches[0].report().held == 24


@pytest.mark.parametrize("policy", ["uniform", "uneven"])
def test_tokens_in_the_remainder_cannot_be_taken_back(policy):
    model, policy = tiny_model(), POLICIES[policy]()
    cache = kvpolicy.compose(**policy.to_dict() | {"recent": 4}).cache(model)
    read(model, cache, 60)
    before = [layer.remainder.counts.clone() for layer in cache.policy_layers]
    cache.crop(-4)
    with pytest.raises(CacheStateError, match="the remainder stands for them"):
        cache.crop(-40)
    assert cache.get_seq_length() == 56
    for layer, counts in zip(cache.policy_layers, before, strict=True):
        assert torch.equal(layer.remainder.counts, counts)


def test_rows_of_a_batch_take_their_remainder_along():
    model = tiny_model()
    cache = small_policy("momentkv").cache(model)
    read(model, cache, 60, batch=3)
    before = cache.policy_layers[1].remainder
    cache.batch_select_indices(torch.tensor([2, 0]))
    cache.batch_repeat_interleave(2)
    after = cache.policy_layers[1].remainder
    assert torch.equal(after.keys, before.keys[[2, 2, 0, 0]])
    assert torch.equal(after.counts, before.counts[[2, 2, 0, 0]])


def test_a_file_holds_the_remainder(tmp_path):
    model, path = tiny_model(), tmp_path / "cache.safetensors"
    cache = kvpolicy.recipe("momentkv", budget=40).cache(model)
    read(model, cache, 60)
    cache.save(path)
    again = kvpolicy.load(path, model)
    for own, loaded in zip(cache.policy_layers, again.policy_layers, strict=True):
        assert torch.equal(own.remainder.values, loaded.remainder.values)
        assert torch.equal(own.remainder.counts, loaded.remainder.counts)
    assert torch.equal(read(model, cache, 5), read(model, again, 5))


@pytest.mark.parametrize("change", ["none", "another count", "not finite", "another dtype"])
def test_a_file_whose_remainder_cannot_be_true_is_refused(change, tmp_path):
    model, path = tiny_model(), tmp_path / "cache.safetensors"
    cache = kvpolicy.recipe("momentkv", budget=40).cache(model)
    read(model, cache, 60)
    contents = cache.policy_layers[1].memory.contents
    found = contents.remainder
    contents.remainder = {
        "none": None,
        "another count": Remainder(keys=found.keys, values=found.values, counts=found.counts + 1),
        "not finite": Remainder(
            keys=found.keys * torch.nan, values=found.values, counts=found.counts
        ),
        "another dtype": Remainder(
            keys=found.keys.double(), values=found.values, counts=found.counts
        ),
    }[change]
    cache.save(path)
    with pytest.raises(CacheFileError, match=r"stands for|remainder"):
        kvpolicy.load(path, model)


def test_a_refused_forward_leaves_the_remainder_as_it_was():
    model = tiny_model()
    cache = small_policy("momentkv").cache(model)
    read(model, cache, 60)
    before = cache.policy_layers[0].remainder
    with pytest.raises(InvalidValueError, match="1 rows, but 2 rows were given"):
        model(input_ids=tokens(3, 5, 2), past_key_values=cache)
    assert cache.policy_layers[0].remainder is before
    assert replayed(model, small_policy("momentkv"), lambda new: read(model, new, 60, 5)) <= LIMIT


def test_a_reset_forgets_the_remainder():
    model = tiny_model()
    cache = small_policy("momentkv").cache(model)
    first = read(model, cache, 60, 5)
    cache.reset()
    assert cache.nbytes == 0
    assert torch.equal(read(model, cache, 60, 5), first)


def test_positions_that_are_kept_are_the_best_of_the_same_scores():
    model = tiny_model()
    row = small_policy("momentkv", budget=25).cache(model)
    none = small_policy("restkv", budget=24).cache(model)
    for cache in (row, none):
        read(model, cache, 60)
    assert torch.equal(row.positions[0], none.positions[0])


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("budget", [24, 0.5])
def test_a_size_is_known_before_the_prompt_is_read(layers, budget):
    model = tiny_model(num_hidden_layers=layers)
    policy = small_policy("momentkv", budget=budget)
    cache = policy.cache(model)
    read(model, cache, 60)
    shape = model_shape(model.config, torch.float32)
    assert cache_size(shape, policy, 60).nbytes == cache.nbytes
