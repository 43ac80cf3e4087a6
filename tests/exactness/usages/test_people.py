"""Ways of asking that other libraries bring are exact, or refused by name."""

import pytest
import torch

from kvpolicy.errors import InvalidValueError
from kvpolicy.exactness.architectures import tiny_architecture
from kvpolicy.exactness.limits import LIMIT
from kvpolicy.exactness.usages import BITWISE, WAYS, small_policy
from kvpolicy.exactness.usages.people import adapters_of_peft
from kvpolicy.testing.models import tiny_model


# PEFT asks transformers for an attribute by its old name.
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.sampled(2, "recipe", "way")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("recipe", ["restkv", "adakv"])
@torch.no_grad()
def test_each_way_is_exact(recipe, way):
    model = tiny_model("llama")
    names = [name for name, _ in model.named_modules()]
    assert WAYS[way](model, small_policy(recipe)) <= (0 if way in BITWISE else LIMIT)
    assert [name for name, _ in model.named_modules()] == names


# PEFT asks transformers for an attribute by its old name.
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@torch.no_grad()
def test_layers_whose_weights_are_turned_are_adapted():
    model = tiny_architecture("gpt2")
    assert adapters_of_peft(model, small_policy("restkv")) <= LIMIT


@torch.no_grad()
def test_a_policy_that_evicts_while_decoding_has_no_budget_for_each_turn():
    with pytest.raises(InvalidValueError, match="per_turn=True"):
        WAYS["a budget for each turn"](tiny_model("llama"), small_policy("h2o"))
