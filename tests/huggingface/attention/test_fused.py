"""Models with learned sinks read long prompts without a tensor of queries times keys."""

import inspect
import pickle

import pytest
import torch
from transformers import DynamicCache

import kvpolicy
from kvpolicy.errors import UnsupportedModelError
from kvpolicy.exactness.architectures import tiny_architecture
from kvpolicy.exactness.usages.inputs import small_policy
from kvpolicy.huggingface.attention import fused
from kvpolicy.huggingface.attention.sinks import attention_with_sinks
from kvpolicy.testing.models import tiny_model

TYPES = ("gpt_oss", "mimo_v2_flash", "granite_swa", "granitemoe_swa", "flint")


@pytest.fixture(scope="module")
def gpt_oss():
    return with_sinks("gpt_oss")


def with_sinks(model_type):
    try:
        model = tiny_architecture(model_type, attn_implementation="eager")
    except (KeyError, ValueError):
        # The oldest transformers that is allowed has fewer types; `make oldest` runs this too.
        pytest.skip(f"this transformers has no {model_type}")
    for name, parameter in model.named_parameters():
        if name.endswith(".sinks"):
            torch.nn.init.normal_(parameter, std=2.0)
    return model


def ids(model, length, rows=1):
    torch.manual_seed(length)
    return torch.randint(3, model.config.get_text_config().vocab_size, (rows, length))


@torch.no_grad()
def answers(model, make, mask=None):
    """Return the logits of a prompt, of a turn and of a token."""
    cache, found, columns = make(), [], 0
    for length in (150, 20, 1):
        tokens = ids(model, length, 2)
        columns += length
        known = None if mask is None else mask[:, :columns]
        found.append(model(tokens, past_key_values=cache, attention_mask=known).logits)
    return found


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("model_type", TYPES)
def test_answers_are_those_of_eager_attention(model_type, padded):
    model = with_sinks(model_type)
    mask = (torch.arange(171) >= torch.tensor([[9], [0]])).long() if padded else None
    real = slice(None) if mask is None else slice(9, None)
    expected = answers(model, lambda: DynamicCache(config=model.config), mask)
    with kvpolicy.fused_sinks(model):
        found = answers(model, lambda: DynamicCache(config=model.config), mask)
    torch.testing.assert_close(found[0][:, real], expected[0][:, real], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found[1:], expected[1:], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("recipe", ["snapkv", "restkv", "adakv", "h2o", "share"])
def test_policies_evict_as_they_do_with_eager_attention(gpt_oss, recipe, padded):
    policy = kvpolicy.recipe("snapkv", budget=0.3) if recipe == "share" else small_policy(recipe)
    mask = (torch.arange(171) >= torch.tensor([[60], [0]])).long() if padded else None
    real = slice(60 if padded else 0, None)
    caches = []

    def make():
        caches.append(policy.cache(gpt_oss))
        return caches[-1]

    expected = answers(gpt_oss, make, mask)
    with kvpolicy.fused_sinks(gpt_oss):
        found = answers(gpt_oss, make, mask)
    torch.testing.assert_close(found[0][:, real], expected[0][:, real], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found[1:], expected[1:], atol=1e-4, rtol=1e-4)
    for mine, theirs in zip(caches[0].layers, caches[1].layers, strict=True):
        if hasattr(mine, "positions"):
            assert torch.equal(mine.positions, theirs.positions)


def test_a_cache_that_is_open_before_observes_all_the_same(gpt_oss):
    expected = answers(gpt_oss, lambda: small_policy("snapkv").cache(gpt_oss))
    cache = small_policy("snapkv").cache(gpt_oss)
    with kvpolicy.fused_sinks(gpt_oss):
        found = answers(gpt_oss, lambda: cache)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert max(layer.held for layer in cache.layers if hasattr(layer, "held")) < 171


def test_neither_eager_attention_nor_a_mask_is_made(gpt_oss, monkeypatch):
    masks = []

    def watched(*tables, visible, **options):
        masks.append(visible)
        return attention_with_sinks(*tables, visible=visible, **options)

    monkeypatch.setattr(fused, "attention_with_sinks", watched)
    with kvpolicy.fused_sinks(gpt_oss):
        gpt_oss(ids(gpt_oss, 150))
    assert masks == [None] * gpt_oss.config.num_hidden_layers


def test_another_model_of_the_type_is_left_alone(gpt_oss, monkeypatch):
    other = with_sinks("gpt_oss")
    expected = other(ids(other, 30)).logits
    monkeypatch.setattr(fused, "attention_with_sinks", None)
    with kvpolicy.fused_sinks(gpt_oss):
        assert torch.equal(other(ids(other, 30)).logits, expected)


def test_behind_the_block_the_model_is_as_found(gpt_oss):
    scope = inspect.unwrap(type(gpt_oss.model.layers[0].self_attn).forward).__globals__
    before = scope["eager_attention_forward"]
    with kvpolicy.fused_sinks(gpt_oss):
        assert scope["eager_attention_forward"] is not before
        copied = pickle.loads(pickle.dumps(gpt_oss))
    assert scope["eager_attention_forward"] is before
    assert copied.config._attn_implementation == "eager"


def test_an_exception_leaves_the_model_as_found(gpt_oss):
    scope = inspect.unwrap(type(gpt_oss.model.layers[0].self_attn).forward).__globals__
    before = scope["eager_attention_forward"]
    with pytest.raises(IndexError), kvpolicy.fused_sinks(gpt_oss):
        gpt_oss(ids(gpt_oss, 9) + 10**6)
    assert scope["eager_attention_forward"] is before


def test_a_mask_of_another_kind_is_followed(gpt_oss):
    """A ready mask hides single tokens from single queries."""
    hidden = torch.rand(1, 1, 40, 40) < 0.2
    hidden |= ~torch.ones(40, 40).tril().bool()
    hidden &= ~torch.eye(40).bool()
    mask = torch.zeros(1, 1, 40, 40).masked_fill(hidden, torch.finfo(torch.float32).min)
    masks = {"full_attention": mask, "sliding_attention": mask}
    with torch.no_grad():
        expected = gpt_oss(ids(gpt_oss, 40), attention_mask=masks).logits
        with kvpolicy.fused_sinks(gpt_oss):
            found = gpt_oss(ids(gpt_oss, 40), attention_mask=masks).logits
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_a_static_cache_has_room_that_is_not_seen(gpt_oss):
    def generated():
        return gpt_oss.generate(
            ids(gpt_oss, 60),
            max_new_tokens=8,
            do_sample=False,
            pad_token_id=0,
            cache_implementation="static",
        )

    expected = generated()
    with kvpolicy.fused_sinks(gpt_oss):
        assert torch.equal(generated(), expected)


def test_gradients_are_those_of_eager_attention(gpt_oss):
    parameters = list(gpt_oss.model.layers[0].self_attn.parameters())

    @torch.enable_grad()
    def gradients():
        return torch.autograd.grad(gpt_oss(ids(gpt_oss, 60)).logits.sin().sum(), parameters)

    expected = gradients()
    with kvpolicy.fused_sinks(gpt_oss):
        found = gradients()
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-2, rtol=1e-3)


def test_models_that_need_none_are_refused(gpt_oss):
    with pytest.raises(
        UnsupportedModelError, match=r"replaces eager attention, but .* uses 'sdpa'"
    ):
        kvpolicy.fused_sinks(tiny_model())
    with pytest.raises(UnsupportedModelError, match="no attention with learned sinks"):
        kvpolicy.fused_sinks(tiny_model(attn_implementation="eager"))
    with (
        pytest.raises(UnsupportedModelError, match="attention weights"),
        kvpolicy.fused_sinks(gpt_oss),
    ):
        gpt_oss(ids(gpt_oss, 9), output_attentions=True)
