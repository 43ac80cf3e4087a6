"""The output projection is shown as the layer computes with it, or refused before any work."""

import pytest
import torch
from optimum.quanto import freeze, qint8, quantize
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from kvpolicy.errors import UnsupportedModelError
from kvpolicy.exactness.usages import small_policy
from kvpolicy.exactness.usages.inputs import tokens
from kvpolicy.huggingface.model.output_projection import output_weight
from kvpolicy.testing.models import tiny_model

# peft asks an older name of this flag.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
NEEDING = pytest.mark.parametrize("recipe", ["restkv", "criticalkv", "defensivekv"])
LIKE = torch.zeros(1)


class Squared(nn.Linear):
    def forward(self, inputs):
        return super().forward(inputs).square()


class Opaque(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, inputs):
        return self.inner(inputs)


def _with_lora(model, *, seed=0, **options):
    config = LoraConfig(r=4, target_modules=["o_proj"], lora_dropout=0.5, **options)
    adapted = get_peft_model(model, config)
    torch.manual_seed(seed)
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight)
    return adapted


def _kept(model, recipe):
    cache = small_policy(recipe).cache(model)
    with torch.no_grad():
        model(tokens(0), past_key_values=cache)
    return cache.positions


def _attention(model):
    return next(each for each in model.modules() if type(each).__name__ == "LlamaAttention")


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("options", [{}, {"use_dora": True}, {"use_rslora": True}], ids=str)
def test_the_weight_behind_an_adapter_is_that_of_the_merged_model(options, training):
    adapted = _with_lora(tiny_model("llama"), **options).train(training)
    attention = _attention(adapted)
    found = output_weight(attention, needed=True, like=LIKE)
    modes = [module.training for module in adapted.modules()]
    assert all(mode is training for mode in modes)
    merged = _attention(adapted.merge_and_unload()).o_proj.weight
    torch.testing.assert_close(found, merged.detach(), rtol=1e-4, atol=1e-5)


def test_a_disabled_adapter_takes_no_part():
    model = tiny_model("llama")
    plain = model.model.layers[0].self_attn.o_proj.weight.detach().clone()
    adapted = _with_lora(model)
    with adapted.disable_adapter():
        found = output_weight(_attention(adapted), needed=True, like=LIKE)
    torch.testing.assert_close(found, plain)


@NEEDING
def test_an_adapted_model_keeps_what_the_merged_one_keeps(recipe):
    adapted = _with_lora(tiny_model("llama")).eval()
    found = _kept(adapted.get_base_model(), recipe)
    expected = _kept(adapted.merge_and_unload(), recipe)
    assert all(torch.equal(*each) for each in zip(found, expected, strict=True))


@NEEDING
def test_a_quantised_model_keeps_what_its_dequantised_one_keeps(recipe):
    model = tiny_model("llama")
    quantize(model, weights=qint8)
    freeze(model)
    found = _kept(model, recipe)
    for layer in model.model.layers:
        plain = nn.Linear(32, 32, bias=False)
        plain.weight.data = layer.self_attn.o_proj.weight.dequantize().detach()
        layer.self_attn.o_proj = plain
    expected = _kept(model, recipe)
    assert all(torch.equal(*each) for each in zip(found, expected, strict=True))


@NEEDING
def test_the_transposed_projection_of_gpt2_is_read(recipe):
    torch.manual_seed(0)
    config = AutoConfig.for_model("gpt2", vocab_size=128, n_embd=32, n_layer=2, n_head=4)
    model = AutoModelForCausalLM.from_config(config).eval()
    attention = model.transformer.h[0].attn
    found = output_weight(attention, needed=True, like=LIKE)
    torch.testing.assert_close(found, attention.c_proj.weight.detach().T)
    assert _kept(model, recipe)[0].shape[-1] == 24


@NEEDING
@pytest.mark.parametrize(
    "make", [lambda own: Squared(32, 32, bias=False), Opaque], ids=["squared", "opaque"]
)
def test_what_cannot_be_read_is_refused_before_any_work(recipe, make):
    model = tiny_model("llama")
    attention = model.model.layers[1].self_attn
    attention.o_proj = make(attention.o_proj)
    with pytest.raises(UnsupportedModelError, match=r"layer 1 of Llama.* cannot be read") as caught:
        small_policy(recipe).cache(model)
    assert type(attention.o_proj).__name__ in str(caught.value)
    assert _kept(model, "snapkv")[0].shape[-1] == 24


def test_a_policy_that_does_not_need_it_does_not_compute_it():
    adapted = _with_lora(tiny_model("llama"))
    assert output_weight(_attention(adapted), needed=False, like=LIKE) is None
