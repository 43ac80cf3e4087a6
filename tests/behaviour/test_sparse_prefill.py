"""Prompts of real models are read by a pattern, and what comes later by all that is held."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import pytest
import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

import kvpolicy
from kvpolicy.exactness.usages import small_policy, tokens
from kvpolicy.testing.models import tiny_model

sys.path.insert(0, str(Path(__file__).parent))
from sparse_prompts import (
    A_SHAPE,
    LENGTH,
    PATTERNS,
    POLICY,
    VERTICAL_SLASH,
    Everything,
    full,
    logits,
    padded,
)

# One process compiles for all of them.
pytestmark = pytest.mark.xdist_group("flex_attention")


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


@pytest.mark.parametrize("lengths", [[LENGTH], [LENGTH, 87, 98]], ids=len)
def test_the_models_own_implementation_does_not_matter(lengths):
    ids, mask = padded(*lengths)
    found = []
    for name in ("sdpa", "eager"):
        model = tiny_model("llama", attn_implementation=name)
        found.append(logits(model, POLICY.cache(model, prefill=VERTICAL_SLASH), ids, mask))

    assert (found[1] - found[0])[mask.bool()].abs().max() <= 1e-5


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
