"""Attention with learned sinks by fused kernels equals the softmax with one more logit."""

import pytest
import torch
from torch.nn import functional as F

from kvpolicy.huggingface.attention import sinks as module
from kvpolicy.huggingface.attention.sinks import attention_with_sinks

SCALING = 0.3


def tables(queries, keys, *, heads=4, groups=2, dim=12, value_dim=20):
    torch.manual_seed(queries * 1000 + keys)
    return (
        torch.randn(2, heads, queries, dim),
        torch.randn(2, heads // groups, keys, dim),
        torch.randn(2, heads // groups, keys, value_dim),
    )


def plainly(query, key, value, sinks, visible, window):
    """Attend in float64, with the whole matrix of logits."""
    groups, count, held = query.shape[1] // key.shape[1], query.shape[2], key.shape[2]
    key, value = (each.double().repeat_interleave(groups, 1) for each in (key, value))
    place = torch.arange(count)[:, None] + held - count
    column = torch.arange(held)
    seen = (column <= place) & (column > place - (window or held))
    if visible is not None:
        seen = seen & visible[:, None, None]
    logits = (query.double() @ key.mT * SCALING).masked_fill(~seen, -torch.inf)
    if sinks is not None:
        more = sinks.double()[:, None, None].expand(*logits.shape[:3], 1)
        logits = torch.cat([logits, more], -1)
    return (logits.softmax(-1)[..., :held] @ value).float()


@pytest.mark.parametrize("window", [None, 7, 40])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(("queries", "keys"), [(1, 50), (17, 60), (30, 90), (90, 90)])
def test_it_is_the_softmax_with_one_more_logit(queries, keys, padded, window, monkeypatch):
    monkeypatch.setattr(module, "PAIRS", 1500)  # several blocks of queries
    given, sinks = tables(queries, keys), torch.randn(4) * 3
    visible = torch.arange(keys) >= torch.tensor([[5], [0]]) if padded else None
    found = attention_with_sinks(
        *given, scaling=SCALING, sinks=sinks, visible=visible, window=window
    )
    expected = plainly(*given, sinks, visible, window)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("window", [None, 7])
@pytest.mark.parametrize(("queries", "keys"), [(1, 50), (30, 90), (90, 90)])
def test_without_sinks_it_is_plain_attention(queries, keys, window):
    given = tables(queries, keys)
    found = attention_with_sinks(*given, scaling=SCALING, sinks=None, window=window)
    torch.testing.assert_close(found, plainly(*given, None, None, window), atol=1e-5, rtol=1e-5)


def test_a_query_that_sees_only_the_sink_gives_zeros():
    query, key, value = tables(30, 30)
    hidden = torch.arange(30) >= torch.tensor([[20], [0]])
    found = attention_with_sinks(
        query, key, value, scaling=SCALING, sinks=torch.zeros(4), visible=hidden
    )
    assert torch.equal(found[0, :, :20], torch.zeros_like(found[0, :, :20]))
    assert found[1].isfinite().all()


@pytest.mark.parametrize(("queries", "keys", "window"), [(30, 30, None), (30, 90, 9), (2, 9, None)])
@torch.enable_grad()
def test_gradients_are_those_of_the_softmax(queries, keys, window):
    given = [each.requires_grad_() for each in (*tables(queries, keys), torch.linspace(-1, 1, 4))]
    *rows, sinks = given
    found = attention_with_sinks(*rows, scaling=SCALING, sinks=sinks, window=window)
    expected = plainly(*rows, sinks, None, window)
    for mine, theirs in zip(
        torch.autograd.grad(found.sin().sum(), given),
        torch.autograd.grad(expected.sin().sum(), given),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)


def test_no_mask_of_all_queries_and_keys_is_made(monkeypatch):
    """Blocks of queries bound what a mask takes, with and without a window."""
    largest = []
    fused = F.scaled_dot_product_attention

    def watched(*args, **kwargs):
        mask = kwargs.get("attn_mask")
        largest.append(0 if mask is None else mask.numel())
        return fused(*args, **kwargs)

    monkeypatch.setattr(module.F, "scaled_dot_product_attention", watched)
    monkeypatch.setattr(module, "PAIRS", 4000)
    sinks = torch.zeros(4)
    attention_with_sinks(*tables(400, 400), scaling=SCALING, sinks=sinks)
    assert largest == [0]
    attention_with_sinks(*tables(300, 400), scaling=SCALING, sinks=sinks)
    attention_with_sinks(*tables(400, 400), scaling=SCALING, sinks=sinks, window=30)
    assert 0 < max(largest) <= 16 * 401
