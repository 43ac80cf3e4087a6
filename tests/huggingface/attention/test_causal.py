"""Causal attention without a tensor of all queries and keys equals the plain softmax."""

import pytest
import torch
from torch.nn import functional as F

from kvpolicy.huggingface.attention import causal as module
from kvpolicy.huggingface.attention.causal import causal_attention
from kvpolicy.observation.logits import Logits

SCALING = 0.3
SETTINGS = [(True, None), (True, 2.0), (False, None), (False, 2.0)]
"""Whether there are learned sinks, and the soft cap."""


def tables(queries, keys, *, heads=4, groups=2, dim=12, value_dim=20):
    torch.manual_seed(queries * 1000 + keys)
    return (
        torch.randn(2, heads, queries, dim),
        torch.randn(2, heads // groups, keys, dim),
        torch.randn(2, heads // groups, keys, value_dim),
    )


def settings(sinks=True, softcap=None):
    learned = torch.linspace(-3, 4, 4) if sinks else None
    return Logits(scaling=SCALING, softcap=softcap, sinks=learned)


def plainly(query, key, value, logits, visible=None, window=None):
    """Attend in float64, with the whole matrix of logits."""
    groups, count, held = query.shape[1] // key.shape[1], query.shape[2], key.shape[2]
    key, value = (each.double().repeat_interleave(groups, 1) for each in (key, value))
    place = torch.arange(count)[:, None] + held - count
    column = torch.arange(held)
    seen = (column <= place) & (column > place - (window or held))
    if visible is not None:
        seen = seen & visible[:, None, None]
    products = query.double() @ key.mT * SCALING
    if logits.softcap is not None:
        products = torch.tanh(products / logits.softcap) * logits.softcap
    products = products.masked_fill(~seen, -torch.inf)
    if logits.sinks is not None:
        more = logits.sinks.double()[:, None, None].expand(*products.shape[:3], 1)
        products = torch.cat([products, more], -1)
    return (products.softmax(-1)[..., :held] @ value).float()


@pytest.mark.parametrize("window", [None, 7, 40])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(("sinks", "softcap"), SETTINGS)
@pytest.mark.parametrize(("queries", "keys"), [(1, 50), (17, 60), (30, 90), (90, 90)])
def test_it_is_the_plain_softmax(queries, keys, sinks, softcap, padded, window, monkeypatch):
    monkeypatch.setattr(module, "PAIRS", 1500)  # several blocks of queries
    given, logits = tables(queries, keys), settings(sinks, softcap)
    visible = torch.arange(keys) >= torch.tensor([[5], [0]]) if padded else None
    found = causal_attention(*given, logits, visible=visible, window=window)
    expected = plainly(*given, logits, visible, window)
    # Rows that see nothing, by which eager attention is NaN or the mean of all values.
    real = expected.isfinite()
    assert bool(real.all()) == (sinks or not padded or queries < keys)
    torch.testing.assert_close(found[real], expected[real], atol=1e-5, rtol=1e-5)
    assert found.isfinite().all()


@pytest.mark.parametrize("queries", [9, 30])
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_a_query_that_sees_only_the_sink_gives_zeros(queries, softcap):
    given = tables(queries, queries)
    visible = torch.arange(queries) >= torch.tensor([[7], [0]])
    found = causal_attention(*given, settings(softcap=softcap), visible=visible)
    assert torch.equal(found[0, :, :7], torch.zeros_like(found[0, :, :7]))
    assert found.isfinite().all()


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize(("queries", "keys", "window"), [(30, 30, None), (30, 90, 9), (2, 9, None)])
@torch.enable_grad()
def test_gradients_are_those_of_the_softmax(queries, keys, window, softcap):
    rows = [each.requires_grad_() for each in tables(queries, keys)]
    logits = settings(softcap=softcap)
    given = [*rows, logits.sinks.requires_grad_()]
    found = causal_attention(*rows, logits, window=window)
    expected = plainly(*rows, logits, None, window)
    for mine, theirs in zip(
        torch.autograd.grad(found.sin().sum(), given),
        torch.autograd.grad(expected.sin().sum(), given),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)


@torch.enable_grad()
def test_no_products_are_kept_for_gradients(monkeypatch):
    monkeypatch.setattr(module, "PAIRS", 4000)
    rows, kept = [each.requires_grad_() for each in tables(200, 200)], {}

    def pack(saved):
        kept[saved.untyped_storage().data_ptr()] = saved.untyped_storage().nbytes()
        return saved

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
        causal_attention(*rows, settings(softcap=2.0)).sum()
    assert sum(kept.values()) <= sum(each.untyped_storage().nbytes() for each in rows)


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
    causal_attention(*tables(400, 400), settings())
    assert largest == [0]
    causal_attention(*tables(300, 400), settings())
    causal_attention(*tables(400, 400), settings(), window=30)
    assert 0 < max(largest) <= 16 * 401


@pytest.mark.parametrize(("queries", "keys", "window"), [(400, 400, None), (300, 400, 150)])
def test_products_are_bounded(queries, keys, window, monkeypatch):
    most = []
    multiplied = module._by_products

    def watched(query, key, *others):
        most.append(query.shape[:3].numel() * key.shape[2])
        return multiplied(query, key, *others)

    monkeypatch.setattr(module, "_by_products", watched)
    monkeypatch.setattr(module, "PAIRS", 2 * 4 * 20 * 400)
    causal_attention(*tables(queries, keys), settings(softcap=2.0), window=window)
    assert len(most) > 5
    assert max(most) <= module.PAIRS
