"""The limit of float32 is fixed; in half precision, and beside a state, it follows the model."""

import pytest
import torch

from kvpolicy.exactness.architectures import tiny_architecture
from kvpolicy.exactness.limits import LIMIT, ULPS, limit_of
from kvpolicy.testing.models import tiny_model


def test_the_limit_of_float32_is_fixed():
    assert limit_of(tiny_model("llama")) == LIMIT


def test_the_limit_of_half_precision_is_some_units_in_the_last_place():
    model = tiny_model("llama").bfloat16()
    largest = float(model(torch.arange(5, 65)[None]).logits.abs().max())
    assert limit_of(model) == ULPS * 2**-7 * largest


@pytest.mark.parametrize("model_type", ["zamba", "zamba2", "zaya"])
def test_the_limit_beside_a_state_follows_its_rounding_and_sees_a_token_less(model_type):
    model = tiny_architecture(model_type)
    limit = limit_of(model)
    assert LIMIT <= limit < 5e-3
    ids, seen = torch.arange(5, 65)[None], torch.ones(60, 60).tril().bool()[None, None]
    hidden = seen.clone()
    hidden[..., -1, 20] = False
    with torch.no_grad():
        logits, others = (model(ids, attention_mask=mask).logits[:, -1] for mask in (seen, hidden))
    assert (logits - others).abs().max() > 4 * limit
