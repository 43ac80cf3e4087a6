"""`output_attentions=True` gives weights over what is held, or is refused."""

import pytest
import torch

from kvpolicy.errors import UnsupportedModelError
from kvpolicy.exactness.usages import small_policy, tokens
from kvpolicy.testing.models import tiny_model


@torch.no_grad()
def test_weights_are_those_over_the_positions_held():
    model = tiny_model("llama", attn_implementation="eager")
    cache, plain = (small_policy("restkv").cache(model) for _ in range(2))
    expected = model(input_ids=tokens(1), output_attentions=True)

    found = model(input_ids=tokens(1), past_key_values=cache, output_attentions=True)
    model(input_ids=tokens(1), past_key_values=plain)
    more = model(input_ids=tokens(2, 3), past_key_values=cache, output_attentions=True)
    without = model(input_ids=tokens(2, 3), past_key_values=plain)

    for ours, theirs in zip(found.attentions, expected.attentions, strict=True):
        assert torch.equal(ours, theirs)
    assert torch.equal(more.logits, without.logits)
    for weights in more.attentions:
        assert weights.shape == (1, 4, 3, 24 + 3)
        torch.testing.assert_close(weights.sum(-1), torch.ones(1, 4, 3))


@pytest.mark.parametrize("by_config", [False, True])
@torch.no_grad()
def test_uneven_heads_have_no_weights_to_give_out(by_config):
    model = tiny_model("llama", attn_implementation="eager")
    model.config.output_attentions = by_config
    cache = small_policy("adakv").cache(model)
    model(input_ids=tokens(1), past_key_values=cache)
    options = {} if by_config else {"output_attentions": True}

    with pytest.raises(UnsupportedModelError, match=r"output_attentions=True.*not compute"):
        model(input_ids=tokens(2, 3), past_key_values=cache, **options)
