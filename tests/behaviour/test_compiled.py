"""A compiled model answers through its cache as it does without being compiled."""

import pytest
import torch

from kvpolicy.exactness.usages import small_policy
from kvpolicy.exactness.usages.inputs import generate, read, tokens
from kvpolicy.testing.models import tiny_model

TURNS = (60, 1, 1, 5, 1)


@pytest.fixture(autouse=True)
def _nothing_compiled_before():
    torch._dynamo.reset()


@pytest.mark.parametrize("recipe", ["restkv", "h2o", "adakv", "streamingllm"])
@torch.no_grad()
def test_graphs_break_where_the_cache_looks_and_answers_are_the_same(recipe):
    model, policy = tiny_model(), small_policy(recipe)
    cache, expected = policy.cache(model), policy.cache(model)
    # "eager" runs the captured graphs as they are: what is tested is what was captured.
    compiled = torch.compile(model, backend="eager")

    for found, plain in zip(
        read(compiled, cache, TURNS), read(model, expected, TURNS), strict=True
    ):
        torch.testing.assert_close(found, plain, rtol=0, atol=1e-5)
    for ours, theirs in zip(cache.positions, expected.positions, strict=True):
        assert torch.equal(ours, theirs)


@torch.no_grad()
def test_generate_takes_a_compiled_forward():
    model, policy = tiny_model(), small_policy("restkv")
    expected = generate(model, policy.cache(model), tokens(1))
    model.forward = torch.compile(model.forward, backend="eager")

    assert torch.equal(generate(model, policy.cache(model), tokens(1)), expected)
