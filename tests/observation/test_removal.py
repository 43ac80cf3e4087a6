"""The change of a layer's output if positions are removed is exact, also where rounding bites."""

from itertools import pairwise

import attrs
import pytest
import torch

from kvpolicy.observation.removal import counts_between, removal
from kvpolicy.observation.softmax import softmax
from kvpolicy.testing import observation
from kvpolicy.testing.samples import normal


def in_float64(layer):
    """The same layer, with every number in float64."""
    names = ("queries", "keys", "values", "output_weight", "sink_logits")
    return {
        name: getattr(layer, name).double() for name in names if getattr(layer, name) is not None
    }


def outputs(layer, kept):
    """Each head's output over the kept positions [B, N, S], straight from the definition."""
    wide = in_float64(layer)
    groups = layer.queries.shape[1] // layer.keys.shape[1]
    keys, values = (wide[name].repeat_interleave(groups, 1) for name in ("keys", "values"))
    logits = wide["queries"] @ keys.mT * layer.scaling
    if layer.softcap is not None:
        logits = layer.softcap * torch.tanh(logits / layer.softcap)
    past = torch.ones(logits.shape[-2:], dtype=torch.bool).tril(layer.length - layer.window)
    allowed = past & kept.repeat_interleave(groups, 1)[:, :, None]
    return softmax(logits.masked_fill(~allowed, -torch.inf), wide.get("sink_logits")) @ values


def expected(layer, scores, count):
    """Changes and errors in float64 if each head keeps its `count` best positions."""
    rank = scores.argsort(dim=-1, descending=True, stable=True).argsort(-1)
    change = outputs(layer, rank < count) - outputs(layer, torch.ones_like(rank, dtype=torch.bool))
    weight = in_float64(layer)["output_weight"].unflatten(1, (change.shape[1], -1))
    by_head = torch.einsum("mhd,bhwd->bhwm", weight, change)
    by_group = by_head.unflatten(1, (layer.keys.shape[1], -1)).sum(2)
    return change, by_group.norm(dim=-1)


@pytest.mark.parametrize(
    "fields",
    [{}, {"sink_logits": normal(7, 4)}, {"softcap": 2.0}, {"batch": 3, "groups": 1}],
    ids=["plain", "learned sinks", "softcap", "a batch"],
)
def test_changes_are_those_of_attention_over_what_is_kept(fields):
    layer = observation(positions=90, window=8, **fields)
    scores = normal(5, *layer.keys.shape[:3]).round(decimals=1)  # some are equal
    scores[..., -8:] = torch.inf
    found = removal(layer, scores, 8)
    assert found.counts[0] == 8
    assert found.counts[-1] == 90
    for place in (0, 3, 20, -2):
        changes, errors = expected(layer, scores, int(found.counts[place]))
        torch.testing.assert_close(found.changes[:, :, place], changes.float())
        torch.testing.assert_close(found.errors[:, :, place], errors.float())
    assert not found.errors[:, :, -1].any()


@pytest.mark.parametrize("logit", [25.0, 60.0])
def test_a_weight_that_rounds_to_one_may_be_kept_or_removed(logit):
    layer = observation(positions=40, heads=1, groups=1, window=4)
    query = layer.queries.mean(2, keepdim=True)
    keys = layer.keys.clone()
    keys[:, :, 7:8] = query * logit / (query.square().sum() * layer.scaling)
    layer = attrs.evolve(layer, keys=keys, queries=query.repeat(1, 1, 4, 1))
    assert layer.attention[..., 7].min() == 1
    best, worst = torch.zeros(2, 1, 1, 40)
    best[..., 7], worst[..., 7] = 1, -1
    for scores in (best, worst):
        found = removal(layer, scores, 5)
        changes, errors = expected(layer, scores, 5)
        torch.testing.assert_close(found.changes[:, :, 0], changes.float(), rtol=1e-3, atol=1e-14)
        torch.testing.assert_close(found.errors[:, :, 0], errors.float(), rtol=1e-3, atol=1e-14)


def test_a_weight_too_small_for_float32_counts_as_no_choice():
    layer = observation(positions=40, heads=1, groups=1, window=1)
    keys = layer.keys.clone()
    keys[:, :, 7] = layer.queries[:, :, 0] * 1e4
    scores = torch.zeros(1, 1, 40)
    scores[..., 7] = -1
    found = removal(attrs.evolve(layer, keys=keys), scores, 5)
    assert found.errors[..., :-1, :].isposinf().all()
    assert not found.errors[..., -1, :].any()


def test_the_output_is_the_layers():
    layer = observation(positions=30, heads=2, groups=2)
    every = torch.ones(1, 2, 30, dtype=torch.bool)
    whole = outputs(layer, every).transpose(1, 2).flatten(2) @ layer.output_weight.double().mT
    torch.testing.assert_close(removal(layer, torch.zeros(1, 2, 30), 1).output, whole.float())


def test_blocks_of_heads_change_nothing(monkeypatch):
    layer, scores = observation(heads=4, positions=70), normal(3, 1, 4, 70)
    whole = removal(layer, scores, 8)
    monkeypatch.setattr("kvpolicy.observation.removal.BLOCK_BYTES", 1)
    for name in ("changes", "errors", "output"):
        torch.testing.assert_close(getattr(removal(layer, scores, 8), name), getattr(whole, name))


@pytest.mark.parametrize(("least", "most"), [(1, 1), (8, 9), (32, 5000)])
def test_counts_are_a_sixteenth_apart_at_most(least, most):
    counts = counts_between(least, most)
    assert counts[0] == least
    assert counts[-1] == most
    assert all(b - a <= max(1, a / 16) for a, b in pairwise(counts))
