"""An MLP in chunks: the same numbers in less memory, and a model that is left as found."""

import sys
from functools import partial

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

import kvpolicy
from kvpolicy.errors import InvalidValueError, UnsupportedModelError
from kvpolicy.huggingface.model.mlp import token_wise_norms
from kvpolicy.testing import FAMILIES, tiny_model
from kvpolicy.testing.models import SIZES

GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4}
EXPERTS = {"num_experts_per_tok": 2, "num_experts": 4, "num_local_experts": 4}
OTHERS = {
    "gpt2": GPT2,
    "gpt_neox": {},
    "bloom": {},
    "mixtral": EXPERTS,
    "qwen3_moe": EXPERTS | {"moe_intermediate_size": 16},
}
PROMPT = torch.arange(2 * 50).view(2, 50) * 7 % 128


def model_of(family, **options):
    """A tiny model in float64, in which rounding is far below what a wrong token would add."""
    config = AutoConfig.for_model(family, **SIZES | dict(FAMILIES.get(family, {})) | options)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        # Only the plain loop over experts computes in float64.
        model = AutoModelForCausalLM.from_config(config, experts_implementation="eager")
    return model.double().eval()


def replaced(model):
    return [name for name, module in model.named_modules() if "forward" in vars(module)]


@pytest.mark.parametrize("family", [*FAMILIES, *OTHERS])
@pytest.mark.parametrize("tokens", [1, 7, 64])
def test_logits_are_the_same(family, tokens):
    model = model_of(family, **OTHERS.get(family, {}))
    expected = model(PROMPT).logits

    with kvpolicy.chunked_mlp(model, tokens=tokens):
        torch.testing.assert_close(model(PROMPT).logits, expected, rtol=1e-12, atol=1e-12)


def test_an_evicted_cache_is_the_same():
    model, policy = model_of("llama"), kvpolicy.recipe("restkv", budget=40)
    with policy.cache(model) as whole:
        expected = model(PROMPT, past_key_values=whole).logits
    with kvpolicy.chunked_mlp(model, tokens=16), policy.cache(model) as chunked:
        logits = model(PROMPT, past_key_values=chunked).logits

    torch.testing.assert_close(logits, expected, rtol=1e-12, atol=1e-12)
    assert all(map(torch.equal, chunked.positions, whole.positions))


def test_no_mlp_sees_more_tokens_than_it_may():
    model, seen = tiny_model(), []
    context = kvpolicy.chunked_mlp(model, tokens=16)
    for layer in model.model.layers:
        layer.mlp.gate_proj.register_forward_hook(
            lambda module, args, output: seen.append(args[0].shape[:-1].numel())
        )

    with context:
        model(PROMPT)

    assert seen == [16, 16, 16, 16, 16, 16, 4] * len(model.model.layers)


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_no_norm_and_no_rotary_function_sees_more_tokens_than_it_may(family, monkeypatch):
    model, seen = model_of(family), []
    module = sys.modules[type(model).__module__]
    rotate = module.apply_rotary_pos_emb

    def watched(q, *args, **kwargs):
        seen.append(q.shape[2] * q.shape[0])
        return rotate(q, *args, **kwargs)

    def counted(forward, hidden):
        seen.append(hidden.shape[:2].numel())
        return forward(hidden)

    monkeypatch.setattr(module, "apply_rotary_pos_emb", watched)
    for norm in token_wise_norms(model):
        own = norm.forward
        monkeypatch.setattr(norm, "forward", partial(counted, own))
    expected = model(PROMPT).logits
    assert max(seen) == PROMPT.numel()
    seen.clear()
    with kvpolicy.chunked_mlp(model, tokens=8):
        # Products of fewer rows may be rounded differently.
        torch.testing.assert_close(model(PROMPT).logits, expected, rtol=0, atol=1e-12)
    assert max(seen) <= 8
    assert module.apply_rotary_pos_emb is watched


def test_gradients_are_the_same():
    model = model_of("llama")

    def gradient():
        model.zero_grad()
        model(PROMPT, labels=PROMPT).loss.backward()
        return model.model.layers[0].mlp.up_proj.weight.grad.clone()

    with torch.enable_grad():
        expected = gradient()
        with kvpolicy.chunked_mlp(model, tokens=16):
            torch.testing.assert_close(gradient(), expected, rtol=1e-10, atol=1e-12)


def test_in_training_dropout_is_the_same():
    model = model_of("gpt2", **GPT2).train()

    def logits():
        torch.manual_seed(1)
        return model(PROMPT).logits

    with torch.random.fork_rng():
        expected = logits()
        with kvpolicy.chunked_mlp(model, tokens=16):
            assert torch.equal(logits(), expected)


def test_the_model_is_left_as_found_also_after_an_error():
    model = tiny_model()
    context = kvpolicy.chunked_mlp(model)
    assert replaced(model) == []
    with context:
        # Of each layer its MLP and two norms, and the last norm of the model.
        assert len(replaced(model)) == 3 * len(model.model.layers) + 1
    assert replaced(model) == []
    with pytest.raises(IndexError), kvpolicy.chunked_mlp(model):
        model(PROMPT + 1000)
    assert replaced(model) == []


def test_a_forward_that_was_replaced_before_is_used_and_left():
    model = tiny_model()
    mlp = model.model.layers[0].mlp
    original = mlp.forward
    mlp.forward = lambda hidden: original(hidden) * 0
    expected = model(PROMPT).logits
    theirs = mlp.forward

    with kvpolicy.chunked_mlp(model, tokens=16):
        torch.testing.assert_close(model(PROMPT).logits, expected)

    assert vars(mlp)["forward"] is theirs
    assert len(replaced(model)) == 1


class PreviousToken(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, hidden):
        return self.scale * hidden + hidden.roll(1, dims=1)


def test_an_mlp_that_mixes_tokens_is_refused():
    model = tiny_model()
    model.model.layers[1].mlp = PreviousToken().eval()

    with pytest.raises(UnsupportedModelError, match="PreviousToken of LlamaForCausalLM mixes"):
        kvpolicy.chunked_mlp(model)
    assert replaced(model) == []


@pytest.mark.parametrize(
    ("family", "options", "reason"),
    [
        (
            "llama4_text",
            {"intermediate_size_mlp": 48},
            "Llama4TextMoe returns more than hidden states",
        ),
        ("opt", {}, "layers of OPTForCausalLM have no module for their MLP"),
    ],
)
def test_what_cannot_be_exact_is_refused_by_name(family, options, reason):
    model = model_of(family, **options)
    with pytest.raises(UnsupportedModelError, match=reason):
        kvpolicy.chunked_mlp(model)


def test_a_tensor_that_is_not_of_these_tokens_is_refused():
    model = tiny_model()
    with kvpolicy.chunked_mlp(model, tokens=16):
        mlp = model.model.layers[0].mlp
        with pytest.raises(UnsupportedModelError, match=r"a tensor \(3,\) beside"):
            mlp.forward(torch.zeros(1, 20, 32), torch.zeros(3))


def test_only_models_and_counts_are_taken():
    with pytest.raises(UnsupportedModelError, match="not a Linear"):
        kvpolicy.chunked_mlp(nn.Linear(2, 2))
    for tokens in (0, 1.5, True):
        with pytest.raises(InvalidValueError, match="'tokens' must be an int of at least 1"):
            kvpolicy.chunked_mlp(tiny_model(), tokens=tokens)
