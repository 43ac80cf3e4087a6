"""Models with soft caps or learned sinks read long prompts without a tensor of L x L."""

import copy
import inspect
import pickle

import pytest
import torch
from model_types import needs_type
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import kvpolicy
from kvpolicy.errors import UnsupportedModelError
from kvpolicy.exactness.architectures import tiny_architecture
from kvpolicy.exactness.usages.inputs import small_policy
from kvpolicy.huggingface.attention import causal, memory_efficient
from kvpolicy.huggingface.attention.causal import causal_attention
from kvpolicy.testing.models import tiny_model


@pytest.fixture(scope="module")
def gpt_oss():
    return with_sinks()


@pytest.fixture(scope="module")
def gemma2():
    # So small a cap changes the logits of a random model too.
    return tiny_model("gemma2", attn_implementation="eager", attn_logit_softcapping=2.0)


@pytest.fixture(params=["gpt_oss", "gemma2"])
def model(request):
    return request.getfixturevalue(request.param)


def with_sinks():
    model = tiny_architecture("gpt_oss", attn_implementation="eager")
    for name, parameter in model.named_parameters():
        if name.endswith(".sinks"):
            torch.nn.init.normal_(parameter, std=2.0)
    return model


def ids(model, length, rows=1):
    torch.manual_seed(length)
    return torch.randint(3, model.config.get_text_config().vocab_size, (rows, length))


@torch.no_grad()
def answers(model, cache):
    """Return the logits of a prompt, of a turn and of a token."""
    return [model(ids(model, length, 2), past_key_values=cache).logits for length in (150, 20, 1)]


def test_a_cache_that_is_open_before_observes_all_the_same(model):
    expected = answers(model, small_policy("snapkv").cache(model))
    cache = small_policy("snapkv").cache(model)
    with kvpolicy.memory_efficient_attention(model):
        found = answers(model, cache)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert max(layer.held for layer in cache.layers if hasattr(layer, "held")) < 171


def test_neither_eager_attention_nor_a_mask_is_made(model, monkeypatch):
    masks = []

    def watched(*tables, visible, **options):
        masks.append(visible)
        return causal_attention(*tables, visible=visible, **options)

    monkeypatch.setattr(memory_efficient, "causal_attention", watched)
    with kvpolicy.memory_efficient_attention(model):
        model(ids(model, 150))
    assert masks == [None] * model.config.num_hidden_layers


class Largest(TorchDispatchMode):
    """Notes the most numbers that a tensor has which an operation returns."""

    numel = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        returned = operation(*args, **(kwargs or {}))
        for each in tree_leaves(returned):
            if isinstance(each, torch.Tensor):
                self.numel = max(self.numel, each.numel())
        return returned


@pytest.mark.parametrize("padded", [False, True])
def test_no_tensor_of_all_queries_and_keys_is_made(model, padded, monkeypatch):
    length = 500
    mask = (torch.arange(length) >= 9).long()[None] if padded else None
    # So few that a prompt of a test has many blocks.
    for module in (memory_efficient, causal):
        monkeypatch.setattr(module, "PAIRS", 2**14)
    with torch.no_grad(), Largest() as before:
        expected = model(ids(model, length), attention_mask=mask).logits
    with torch.no_grad(), kvpolicy.memory_efficient_attention(model), Largest() as after:
        found = model(ids(model, length), attention_mask=mask).logits
    real = slice(9 if padded else 0, None)
    torch.testing.assert_close(found[:, real], expected[:, real], atol=1e-4, rtol=1e-4)
    assert before.numel >= model.config.num_attention_heads * length**2
    assert after.numel < length**2


def test_another_model_of_the_type_is_left_alone(gpt_oss, monkeypatch):
    other = with_sinks()
    expected = other(ids(other, 30)).logits
    monkeypatch.setattr(memory_efficient, "causal_attention", None)
    with kvpolicy.memory_efficient_attention(gpt_oss):
        assert torch.equal(other(ids(other, 30)).logits, expected)


def test_behind_the_block_the_model_is_as_found(model):
    scope = inspect.unwrap(type(model.model.layers[0].self_attn).forward).__globals__
    before = scope["eager_attention_forward"]
    with kvpolicy.memory_efficient_attention(model):
        assert scope["eager_attention_forward"] is not before
        copied = pickle.loads(pickle.dumps(model))
    assert scope["eager_attention_forward"] is before
    assert copied.config._attn_implementation == "eager"


def test_an_exception_leaves_the_model_as_found(model):
    scope = inspect.unwrap(type(model.model.layers[0].self_attn).forward).__globals__
    before = scope["eager_attention_forward"]
    with pytest.raises(IndexError), kvpolicy.memory_efficient_attention(model):
        model(ids(model, 9) + 10**6)
    assert scope["eager_attention_forward"] is before


def test_a_mask_of_another_kind_is_followed(model):
    """A ready mask hides single tokens from single queries."""
    hidden = torch.rand(1, 1, 40, 40) < 0.2
    hidden |= ~torch.ones(40, 40).tril().bool()
    hidden &= ~torch.eye(40).bool()
    mask = torch.zeros(1, 1, 40, 40).masked_fill(hidden, torch.finfo(torch.float32).min)
    masks = {"full_attention": mask, "sliding_attention": mask}
    with torch.no_grad():
        expected = model(ids(model, 40), attention_mask=masks).logits
        with kvpolicy.memory_efficient_attention(model):
            found = model(ids(model, 40), attention_mask=masks).logits
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_a_static_cache_has_room_that_is_not_seen(model):
    def generated():
        return model.generate(
            ids(model, 60),
            max_new_tokens=8,
            do_sample=False,
            pad_token_id=0,
            cache_implementation="static",
        )

    expected = generated()
    with kvpolicy.memory_efficient_attention(model):
        assert torch.equal(generated(), expected)


def test_gradients_are_those_of_eager_attention(model):
    parameters = list(model.model.layers[0].self_attn.parameters())

    @torch.enable_grad()
    def gradients():
        return torch.autograd.grad(model(ids(model, 60)).logits.sin().sum(), parameters)

    expected = gradients()
    with kvpolicy.memory_efficient_attention(model):
        found = gradients()
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-2, rtol=1e-3)


@pytest.mark.parametrize("columns", [40, 70])
@torch.no_grad()
def test_a_mask_of_another_length_is_read_as_in_eager_attention(model, columns):
    """The first columns are those of the text, and what a mask does not reach is padding."""
    mask = torch.ones(2, columns).long()
    mask[0, :5] = mask[:, 50:] = 0
    expected = model(ids(model, 60, 2), attention_mask=mask).logits
    with kvpolicy.memory_efficient_attention(model):
        found = model(ids(model, 60, 2), attention_mask=mask).logits
    # Queries of padding may see nothing. Then their logits mean nothing.
    torch.testing.assert_close(found[:, 5:40], expected[:, 5:40], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("model_type", ["deepseek_v4", "hy_v4"])
def test_models_that_read_their_mask_are_refused(model_type):
    """Without a mask the first would compute other logits, and the second would fail inside."""
    needs_type(model_type)
    model = tiny_architecture(model_type, attn_implementation="eager")
    with pytest.raises(UnsupportedModelError, match="read the mask that they give"):
        kvpolicy.memory_efficient_attention(model)


def test_models_that_need_none_are_refused(model):
    with pytest.raises(
        UnsupportedModelError, match=r"replaces eager attention, but .* uses 'sdpa'"
    ):
        kvpolicy.memory_efficient_attention(tiny_model())
    with pytest.raises(UnsupportedModelError, match="no attention with soft caps or learned sinks"):
        kvpolicy.memory_efficient_attention(tiny_model(attn_implementation="eager"))
    with pytest.raises(UnsupportedModelError, match="a transformers PreTrainedModel, not a Linear"):
        kvpolicy.memory_efficient_attention(torch.nn.Linear(2, 2))
    with (
        pytest.raises(UnsupportedModelError, match="attention weights or dropout"),
        kvpolicy.memory_efficient_attention(model),
    ):
        model(ids(model, 9), output_attentions=True)


def test_layers_with_another_config_are_refused():
    model = tiny_model("gemma2", attn_implementation="eager")
    attention = model.model.layers[1].self_attn
    attention.config = copy.copy(attention.config)
    with pytest.raises(UnsupportedModelError, match="another config than the model"):
        kvpolicy.memory_efficient_attention(model)


def test_a_window_of_one_token_is_refused():
    model = tiny_model("gemma2", attn_implementation="eager", sliding_window=1)
    with pytest.raises(UnsupportedModelError, match="a sliding window of 1 token"):
        kvpolicy.memory_efficient_attention(model)


def test_it_keeps_its_former_name():
    assert kvpolicy.fused_sinks is kvpolicy.memory_efficient_attention
