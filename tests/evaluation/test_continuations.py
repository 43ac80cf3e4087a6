"""Logits of continuations over an evicted cache, and when there is nothing evicted."""

from __future__ import annotations

import attrs
import pytest
import torch

import kvpolicy
from kvpolicy.evaluation.continuations import logits_of_continuations, logits_of_stream
from kvpolicy.testing import tiny_model

CONTEXT = [(7 * place) % 50 + 3 for place in range(40)]
CONTINUATIONS = [[5, 9, 11], [6], [5, 9, 12, 13]]


@pytest.fixture(scope="module")
def model():
    return tiny_model("qwen3")


def policy(budget=16, **settings):
    return kvpolicy.recipe("knorm", budget=budget, **settings)


@torch.no_grad()
def by_hand(model, policy, tokens):
    """Read the context but its last token, then token by token; return the logits before each."""
    with policy.cache(model) as cache:
        model(torch.tensor([CONTEXT[:-1]]), past_key_values=cache)
        read = [CONTEXT[-1], *tokens[:-1]]
        found = [model(torch.tensor([[each]]), past_key_values=cache).logits[0] for each in read]
        return torch.cat(found)


@pytest.fixture
def continued(model):
    with torch.no_grad():
        yield lambda policy: logits_of_continuations(model, policy, CONTEXT, CONTINUATIONS)


@pytest.mark.parametrize("settings", [{}, {"every": 1}, {"every": 2}])
def test_continuations_go_on_from_one_evicted_context(model, continued, settings):
    given = policy(**settings)
    for tokens, found in zip(CONTINUATIONS, continued(given), strict=True):
        torch.testing.assert_close(found, by_hand(model, given, tokens))


def test_the_first_token_depends_on_what_was_evicted(model, continued):
    with torch.no_grad():
        full = model(torch.tensor([CONTEXT])).logits[0, -1]
    assert (continued(policy())[0][0] - full).abs().max() > 1e-3


@pytest.mark.parametrize("given", [policy(1.0), policy(64), policy(64, every=1)])
def test_a_policy_that_evicts_nothing_says_so(continued, given):
    assert continued(given) is None


def test_a_continuation_may_be_what_is_evicted(continued):
    assert continued(policy(len(CONTEXT))) is None
    assert continued(policy(len(CONTEXT), every=1)) is not None


def test_a_context_of_one_token_is_read(model):
    with torch.no_grad():
        given = policy(4, every=1)
        [found] = logits_of_continuations(model, given, CONTEXT[:1], [CONTEXT[1:]])
        torch.testing.assert_close(found[0], model(torch.tensor([CONTEXT[:1]])).logits[0, -1])
    assert found.shape[0] == len(CONTEXT) - 1


@pytest.mark.parametrize("chunk", [1, 7, 100])
def test_a_stream_evicts_after_each_chunk(model, chunk):
    given = policy()
    with torch.no_grad():
        found = logits_of_stream(model, given, CONTEXT, chunk=chunk)
        full = model(torch.tensor([CONTEXT])).logits[0, :-1]
        assert found.shape == full.shape
        # Nothing is evicted before the 17th token, and never before the first chunk ends.
        exact = max(16, chunk)
        torch.testing.assert_close(found[:exact], full[:exact])
        assert chunk > len(CONTEXT) or (found[exact + chunk :] - full[exact + chunk :]).any()


def test_a_stream_of_single_tokens_is_read_by_a_policy_that_evicts_while_it_decodes(model):
    given = policy()
    with torch.no_grad(), attrs.evolve(given, every=1).cache(model) as cache:
        expected = [
            model(torch.tensor([[token]]), past_key_values=cache).logits[0] for token in CONTEXT
        ]
        found = logits_of_stream(model, given, CONTEXT, chunk=1)
    torch.testing.assert_close(found, torch.cat(expected)[:-1])


def test_a_stream_that_fits_says_so(model):
    with torch.no_grad():
        assert logits_of_stream(model, policy(64), CONTEXT, chunk=1) is None
