"""Prompts of real models read by a pattern, and what is evicted after it."""

from __future__ import annotations

import copy
import sys

import attrs
import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache
from transformers.masking_utils import eager_mask

import kvpolicy
import kvpolicy.huggingface.attention.masks as masks
from kvpolicy.cache.eviction.one_layer import selected
from kvpolicy.errors import (
    ComponentFailedError,
    InvalidComponentError,
    InvalidValueError,
    UnknownComponentError,
    UnsupportedModelError,
)
from kvpolicy.exactness.usages import small_policy, tokens
from kvpolicy.huggingface.attention import first_prompt
from kvpolicy.prefill import AShape, VerticalSlash
from kvpolicy.testing.models import tiny_model

# One process compiles for all of them.
pytestmark = pytest.mark.xdist_group("flex_attention")

A_SHAPE = AShape(sinks=3, local=8, block=16)
VERTICAL_SLASH = VerticalSlash(queries=9, columns=20, diagonals=8, sinks=3, local=5, block=16)
PATTERNS = pytest.mark.parametrize("pattern", [A_SHAPE, VERTICAL_SLASH], ids=["a", "vertical"])
POLICY = small_policy("snapkv")
LENGTH = 101


@attrs.frozen
class Everything:
    """A pattern that leaves nothing out, and does not say so."""

    block: int = 16
    dense_up_to: int = 0

    def choose(self, queries, keys, *, scaling, softcap=None):
        count = -(-keys.shape[2] // self.block)
        return torch.ones(*queries.shape[:2], count, count, dtype=torch.bool)


def padded(*lengths):
    mask = (torch.arange(LENGTH) >= LENGTH - torch.tensor(lengths)[:, None]).long()
    return tokens(4, LENGTH, len(lengths)) * mask, mask


def logits(model, cache, ids, mask=None):
    positions = None if mask is None else (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
    return model(
        input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache
    ).logits


def full(model):
    return DynamicCache(config=model.config)


@pytest.fixture
def by_elements():
    """Let a model attend by a mask of elements, made of a pattern's choice for each row alone."""

    def attention(pattern, lengths):
        def masked(module, query, key, value, attention_mask, scaling, **kwargs):
            chosen = torch.zeros(query.shape[0], query.shape[1], LENGTH, LENGTH, dtype=torch.bool)
            causal = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
            for row, length in enumerate(lengths):
                first = LENGTH - length
                own = [each[row : row + 1, :, first:] for each in (query, key)]
                blocks = pattern.choose(*own, scaling=scaling)[0]
                where = torch.arange(length) // pattern.block
                same = where[:, None] == where
                chosen[row, :, first:, first:] = blocks[:, where][:, :, where] | same
            allowed = chosen & causal | torch.eye(LENGTH, dtype=torch.bool)
            key, value = (each.repeat_interleave(2, 1) for each in (key, value))
            weights = (query @ key.mT * scaling).masked_fill(~allowed, -torch.inf).softmax(-1)
            return (weights @ value).transpose(1, 2).contiguous(), None

        AttentionInterface.register("by-elements", masked)
        AttentionMaskInterface.register("by-elements", eager_mask)
        return "by-elements"

    yield attention
    for interface in (AttentionInterface, AttentionMaskInterface):
        interface._global_mapping.pop("by-elements", None)


@pytest.mark.parametrize(
    ("family", "lengths"),
    [
        ("llama", [LENGTH]),
        ("llama", [LENGTH, 60, 2]),
        # Several rows with a softcap, like those of tests/prefill, are compiled once for both.
        ("gemma2", [LENGTH, 60, 2]),
        pytest.param("gemma2", [LENGTH], marks=pytest.mark.deep),
    ],
)
def test_a_pattern_that_leaves_nothing_out_is_the_models_own_attention(family, lengths):
    # sdpa has no softcap.
    eager = {"attn_implementation": "eager"} if family == "gemma2" else {}
    model = tiny_model(family, **eager)
    ids, mask = padded(*lengths)
    expected = logits(model, full(model), ids, mask)
    cache = POLICY.cache(model, prefill=Everything())
    found = logits(model, cache, ids, mask)

    assert (found - expected)[mask.bool()].abs().max() <= 1e-4
    assert cache.report().density == 1
    assert family != "gemma2" or model.config.attn_logit_softcapping is not None


@PATTERNS
@pytest.mark.parametrize("lengths", [[LENGTH], [LENGTH, 87, 98]], ids=len)
def test_the_pattern_is_the_mask_that_attention_sees(by_elements, pattern, lengths):
    model = tiny_model("llama")
    ids, mask = padded(*lengths)
    cache = POLICY.cache(model, prefill=pattern)
    found = logits(model, cache, ids, mask)
    kvpolicy.restore(model)
    dense = logits(model, full(model), ids, mask)
    model.set_attn_implementation(by_elements(pattern, lengths))
    expected = logits(model, full(model), ids, mask)

    real = mask.bool()
    assert (found - expected)[real].abs().max() <= 1e-4
    assert (dense - expected)[real].abs().max() > 0.1
    assert 0 < cache.report().density < 1


@PATTERNS
def test_a_padded_row_is_read_as_if_alone(pattern):
    model, lengths = tiny_model("llama"), [LENGTH, 90, 30, 1]
    ids, mask = padded(*lengths)
    cache = POLICY.cache(model, prefill=pattern)
    together = logits(model, cache, ids, mask)

    for row, length in enumerate(lengths):
        alone = POLICY.cache(model, prefill=pattern)
        expected = logits(model, alone, ids[row : row + 1, -length:])
        assert (together[row, -length:] - expected).abs().max() <= 1e-4
        for mine, of_batch in zip(alone.positions, cache.positions, strict=True):
            held = mine.shape[-1]
            assert torch.equal(mine[0], of_batch[row, :, :held])


def test_a_short_prompt_is_read_densely_bit_for_bit():
    model, ids = tiny_model("llama"), tokens(0, A_SHAPE.dense_up_to)
    cache = POLICY.cache(model, prefill=A_SHAPE)

    assert torch.equal(logits(model, cache, ids), logits(model, POLICY.cache(model), ids))
    assert cache.report().density is None


@PATTERNS
def test_only_a_first_prompt_is_read_by_the_pattern(pattern):
    """What comes later is the model's own attention to all that is held."""
    model = tiny_model("llama")
    cache = small_policy("snapkv", budget=1000).cache(model, prefill=pattern)
    logits(model, cache, tokens(0, LENGTH))
    density = cache.report().density
    held = full(model)
    for index, layer in enumerate(cache.policy_layers):
        held.update(layer.keys.clone(), layer.values.clone(), index)
    for turn, length in enumerate((1, 1, 70, 1)):
        ids = tokens(turn + 1, length)
        found, expected = logits(model, cache, ids), logits(model, held, ids)
        # One query is attended for by folding the heads of a group into it.
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)

    assert cache.report().density == density
    cache.reset()
    assert cache.report().density is None
    logits(model, cache, tokens(0, LENGTH))
    assert cache.report().density == density


def test_of_a_prompt_in_chunks_the_first_is_read_by_the_pattern():
    model, ids = tiny_model("llama"), tokens(0, 2 * LENGTH)
    cache, first = (POLICY.cache(model, prefill=A_SHAPE) for _ in range(2))
    options = {"max_new_tokens": 2, "do_sample": False, "prefill_chunk_size": LENGTH}
    model.generate(ids, past_key_values=cache, pad_token_id=0, **options)
    logits(model, first, ids[:, :LENGTH])

    assert cache.report().density == first.report().density < 1
    assert cache.get_seq_length() == 2 * LENGTH + 1


def test_generate_works_with_a_name():
    model = tiny_model("llama")
    cache = POLICY.cache(model, prefill={"name": "ashape", "sinks": 3, "local": 8, "block": 16})
    said = model.generate(
        tokens(0, LENGTH), past_key_values=cache, max_new_tokens=4, do_sample=False, pad_token_id=0
    )
    assert said.shape == (1, LENGTH + 4)
    assert cache.prefill == A_SHAPE
    assert copy.deepcopy(cache).prefill == A_SHAPE


@pytest.fixture
def shown(monkeypatch):
    """What the attention of every layer was given and gave, in the order of the layers."""
    prompts, read = [], first_prompt.read_sparsely

    def recorded(pattern, queries, keys, values, lengths, logits):
        prompt = read(pattern, queries, keys, values, lengths, logits)
        prompts.append((queries.clone(), keys.clone(), values.clone(), prompt.output))
        return prompt

    monkeypatch.setattr(first_prompt, "read_sparsely", recorded)
    return prompts


@pytest.mark.parametrize("recipe", sorted(each.name for each in kvpolicy.installed("recipe")))
def test_every_recipe_keeps_what_it_would_after_dense_attention_to_the_same(recipe, shown):
    """Given the inputs of every layer, it does not matter to a score how attention was computed."""
    model, policy = tiny_model("llama"), small_policy(recipe)
    sparse = policy.cache(model, prefill=VERTICAL_SLASH)
    found = logits(model, sparse, tokens(0, LENGTH))
    kvpolicy.restore(model)
    outputs = [prompt[3] for prompt in shown]

    def replayed(module, query, key, value, mask, **kwargs):
        torch.testing.assert_close(query, shown[module.layer_idx][0], atol=0, rtol=0)
        return outputs[module.layer_idx], None

    AttentionInterface.register("replayed", replayed)
    AttentionMaskInterface.register("replayed", eager_mask)
    try:
        model.set_attn_implementation("replayed")
        dense = policy.cache(model)
        assert torch.equal(logits(model, dense, tokens(0, LENGTH)), found)
    finally:
        for interface in (AttentionInterface, AttentionMaskInterface):
            interface._global_mapping.pop("replayed", None)
    for one, other in zip(sparse.positions, dense.positions, strict=True):
        assert torch.equal(one, other)
    for one, other in zip(sparse.policy_layers, dense.policy_layers, strict=True):
        assert torch.equal(one.keys, other.keys)
        assert torch.equal(one.values, other.values)


@pytest.mark.parametrize("recipe", ["restkv", "snapkv"])
def test_what_is_kept_is_what_the_policy_chooses_of_all_keys(recipe, shown):
    model, policy = tiny_model("llama"), small_policy(recipe)
    cache = policy.cache(model, prefill=VERTICAL_SLASH)
    logits(model, cache, tokens(0, LENGTH))

    for index, (queries, keys, values, _) in enumerate(shown):
        observation = kvpolicy.Observation(
            queries=queries[:, :, -8:],
            keys=keys,
            values=values,
            layer=index,
            num_layers=2,
            output_weight=model.model.layers[index].self_attn.o_proj.weight,
            budget=24,
        )
        assert keys.shape[2] == LENGTH
        assert torch.equal(cache.positions[index], selected(policy, observation).indices)


@pytest.mark.parametrize("lengths", [[LENGTH], [LENGTH, 87, 98]], ids=len)
def test_the_models_own_implementation_does_not_matter(lengths):
    ids, mask = padded(*lengths)
    found = []
    for name in ("sdpa", "eager"):
        model = tiny_model("llama", attn_implementation=name)
        found.append(logits(model, POLICY.cache(model, prefill=VERTICAL_SLASH), ids, mask))

    assert (found[1] - found[0])[mask.bool()].abs().max() <= 1e-5


def as_given(backend, allowed):
    """A [B, T, T] mask as a backend of transformers has it."""
    if backend == "sdpa":
        return allowed[:, None]
    if backend == "eager":
        floor = torch.finfo(torch.float32).min
        return torch.zeros(allowed.shape).masked_fill(~allowed, floor)[:, None]

    def visible(row, head, query, key):
        return allowed[row, query, key]

    return create_block_mask(visible, len(allowed), None, *allowed.shape[1:], device="cpu")


@pytest.mark.parametrize("backend", ["sdpa", "eager", "flex_attention"])
@pytest.mark.parametrize("at_once", [2**24, 1], ids=["at once", "row by row"])
def test_only_a_causal_mask_with_padding_on_the_left_is_followed(backend, at_once, monkeypatch):
    monkeypatch.setattr(masks, "_ROWS_AT_ONCE", at_once)
    lengths, token = [20, 17, 1], torch.arange(20)
    real = token >= 20 - torch.tensor(lengths)[:, None]
    allowed = torch.ones(20, 20, dtype=torch.bool).tril() & real[:, None]
    told = ("sparse prefill", "Use prefill=None.")
    masks.check_causal(as_given(backend, allowed), lengths, *told)
    masks.check_causal(as_given(backend, allowed | ~real[..., None]), lengths, *told)

    for row, query, key in ((0, 19, 4), (0, 4, 19), (1, 12, 3), (1, 12, 2), (2, 19, 19)):
        other = allowed.clone()
        other[row, query, key] ^= True
        with pytest.raises(InvalidValueError, match="prefill=None"):
            masks.check_causal(as_given(backend, other), lengths, *told)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_a_mask_that_does_more_than_hide_padding_is_refused(implementation):
    model = tiny_model("llama", attn_implementation=implementation)
    packed = torch.ones(1, 1, LENGTH, LENGTH, dtype=torch.bool).tril()
    packed[..., 50:60, :20] = False
    mask = packed
    if implementation == "eager":
        mask = torch.zeros(packed.shape).masked_fill(~packed, torch.finfo(torch.float32).min)
    # Nothing is evicted: the eviction would refuse the mask first.
    cache = attrs.evolve(POLICY, budget=1000).cache(model, prefill=A_SHAPE)

    refusal = r"sparse prefill cannot follow it\. Use prefill=None"
    with pytest.raises(InvalidValueError, match=refusal):
        model(input_ids=tokens(0, LENGTH), attention_mask=mask, past_key_values=cache)


def test_dropout_is_refused():
    model = tiny_model("llama", attention_dropout=0.5)
    model.train()
    with pytest.raises(UnsupportedModelError, match="sparse prefill do not support"):
        logits(model, POLICY.cache(model, prefill=A_SHAPE), tokens(0, LENGTH))


@pytest.mark.parametrize(
    ("choose", "error", "sentence"),
    [
        (lambda *given, **more: torch.ones(1, 4, 6, 6, dtype=torch.bool), InvalidComponentError,
         r"chose torch.bool of \(1, 4, 6, 6\), not torch.bool of \(1, 4, 7, 7\)"),
        (lambda *given, **more: torch.ones(1, 4, 7, 7), InvalidComponentError, "chose torch.float"),
        (lambda *given, **more: None, InvalidComponentError, "chose None"),
        (lambda *given, **more: 1 / 0, ComponentFailedError, "raised ZeroDivisionError"),
    ],
)  # fmt: skip
def test_a_faulty_pattern_is_named(choose, error, sentence):
    @attrs.frozen
    class Faulty(Everything):
        def choose(self, *given, **more):
            return choose(*given, **more)

    model = tiny_model("llama")
    with pytest.raises(error, match=rf"prefill pattern .*Faulty\(.* {sentence}"):
        logits(model, POLICY.cache(model, prefill=Faulty()), tokens(0, LENGTH))


def test_a_prefill_that_does_not_exist_changes_nothing_of_the_model():
    model = tiny_model("llama")
    with pytest.raises(UnknownComponentError, match="Did you mean 'ashape'"):
        POLICY.cache(model, prefill="a_shape")
    assert model.config._attn_implementation == "sdpa"


def test_the_report_shows_what_share_of_the_pairs_was_looked_at():
    model = tiny_model("llama")
    cache = POLICY.cache(model, prefill=A_SHAPE)
    logits(model, cache, tokens(0, LENGTH))
    head, *rows = str(cache.report()).splitlines()

    assert head.endswith("pairs")
    share = f"{cache.report().density:.1%}".replace("%", " %")
    assert {row[-8:].strip() for row in rows} == {share}
    assert "pairs" not in str(POLICY.cache(model).report())


def test_without_prefill_flex_attention_is_not_even_imported():
    import subprocess

    code = (
        "import sys, kvpolicy\n"
        "from kvpolicy.testing.models import tiny_model\n"
        "from kvpolicy.exactness.usages import small_policy, tokens\n"
        "model = tiny_model('llama')\n"
        "model(input_ids=tokens(0), past_key_values=small_policy('snapkv').cache(model))\n"
        "assert 'torch._inductor.compile_fx' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
