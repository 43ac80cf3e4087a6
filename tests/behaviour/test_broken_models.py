"""A model whose numbers are not finite is named, with the layer, by every recipe."""

import pytest
import torch

import kvpolicy
from kvpolicy.errors import UnsupportedModelError
from kvpolicy.exactness.usages import small_policy
from kvpolicy.exactness.usages.inputs import tokens
from kvpolicy.testing.models import tiny_model

RECIPES = sorted(each.name for each in kvpolicy.installed() if each.kind == "recipe")


def _broken(layer, projection, number):
    model = tiny_model("llama")
    attention = model.model.layers[layer].self_attn
    getattr(attention, projection).weight.data[-1] = number
    return model


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize(
    ("layer", "projection", "number", "told"),
    [
        (1, "k_proj", torch.nan, "keys are NaN or infinite in .*layer 1"),
        (0, "v_proj", torch.inf, "values are NaN or infinite in attention layer 0"),
    ],
)
def test_the_message_names_the_layer(recipe, layer, projection, number, told):
    model = _broken(layer, projection, number)
    if recipe == "kvzip" and projection == "v_proj":
        # It reads no values, and the prompt twice before it ranks: the next layer's keys tell.
        told = "keys are NaN or infinite in attention layer 1"
    with pytest.raises(UnsupportedModelError, match=told):
        model(tokens(0), past_key_values=small_policy(recipe).cache(model))


@pytest.mark.parametrize("recipe", ["h2o", "tova"])
def test_so_it_does_while_decoding(recipe):
    model = tiny_model("llama")
    cache = small_policy(recipe).cache(model)
    model(tokens(0), past_key_values=cache)
    model.model.layers[1].self_attn.k_proj.weight.data[-1] = torch.nan
    told = "keys are NaN or infinite in attention layer 1"
    with pytest.raises(UnsupportedModelError, match=told):
        model(tokens(1, 1), past_key_values=cache)
