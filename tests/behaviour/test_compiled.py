"""A compiled model answers through its cache as the model itself does."""

import pytest
import torch

from kvpolicy.exactness.usages import small_policy
from kvpolicy.exactness.usages.inputs import generate, read, tokens
from kvpolicy.testing.models import tiny_model

TURNS = (60, 1, 1, 5, 1)
# Each takes ten seconds to compile.
SLOW = [pytest.param(name, marks=pytest.mark.deep) for name in ("restkv", "h2o", "streamingllm")]


@pytest.fixture(autouse=True)
def _nothing_compiled_before():
    torch._dynamo.reset()


@pytest.mark.parametrize("recipe", ["adakv", *SLOW])
@torch.no_grad()
def test_a_compiled_model_answers_and_evicts_as_the_model_itself(recipe):
    model, policy = tiny_model(), small_policy(recipe)
    cache, expected = policy.cache(model), policy.cache(model)
    # "eager" runs the captured graphs unchanged, so a difference is one of the capture.
    compiled = torch.compile(model, backend="eager")

    for found, plain in zip(
        read(compiled, cache, TURNS), read(model, expected, TURNS), strict=True
    ):
        torch.testing.assert_close(found, plain, rtol=0, atol=1e-5)
    for ours, theirs in zip(cache.positions, expected.positions, strict=True):
        assert torch.equal(ours, theirs)


@torch.no_grad()
def test_generate_uses_a_compiled_forward():
    model, policy = tiny_model(), small_policy("restkv")
    expected = generate(model, policy.cache(model), tokens(1))
    model.forward = torch.compile(model.forward, backend="eager")

    assert torch.equal(generate(model, policy.cache(model), tokens(1)), expected)
