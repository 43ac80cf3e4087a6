"""Evictions of a layer by kvpolicy and by the peers, and stage by stage."""

import pytest
import torch

import kvpolicy
from benchmarks import evictions
from benchmarks.layers import LayerShape, random_layer

SHAPE = LayerShape(heads=8, kv_heads=2, dim=16, model_dim=64, window=8)
BUDGET = 24


@pytest.fixture(scope="module")
def layer():
    return random_layer(SHAPE, 96, BUDGET, torch.float32, torch.device("cpu"))


@pytest.mark.parametrize(
    ("call", "heads"),
    [
        (lambda layer: evictions.ours("restkv", layer, BUDGET), 2),
        (lambda layer: evictions.ours("snapkv", layer, BUDGET), 2),
        (lambda layer: evictions.authors(layer, BUDGET), 8),
        (lambda layer: evictions.kvpress(layer, BUDGET), 2),
    ],
    ids=["restkv", "snapkv", "authors", "kvpress"],
)
def test_an_eviction_leaves_the_budget(layer, call, heads):
    with torch.no_grad():
        keys, values = call(layer)()
    assert keys.shape == values.shape == (1, heads, BUDGET, 16)


@torch.no_grad()
def test_the_stages_take_time_in_the_order_of_the_flow(layer):
    policy = kvpolicy.recipe("snapkv", budget=BUDGET, scorer={"name": "snapkv", "window": 8})
    found = evictions.stage_seconds(policy, layer, 2)
    stages = ["score", "smooth", "reduce, protect", "allocate", "select", "compact"]
    assert list(found) == stages
    assert all(seconds > 0 for seconds in found.values())


def test_a_layer_is_the_same_for_the_same_length():
    sizes = (torch.float32, torch.device("cpu"))
    first = random_layer(SHAPE, 40, BUDGET, *sizes)
    random_layer(SHAPE, 41, BUDGET, *sizes)
    again = random_layer(SHAPE, 40, BUDGET, *sizes)
    assert first is not again
    assert torch.equal(first.keys, again.keys)
