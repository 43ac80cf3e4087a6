"""The limit of float32 is fixed; in half precision it grows with the logits."""

import torch

from kvpolicy.exactness.limits import LIMIT, ULPS, limit_of
from kvpolicy.testing.models import tiny_model


def test_the_limit_of_float32_is_fixed():
    assert limit_of(tiny_model("llama")) == LIMIT


def test_the_limit_of_half_precision_is_some_units_in_the_last_place():
    model = tiny_model("llama").bfloat16()
    largest = float(model(torch.arange(5, 65)[None]).logits.abs().max())
    assert limit_of(model) == ULPS * 2**-7 * largest
