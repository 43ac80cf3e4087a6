"""What a cache says of itself: its repr, its table for notebooks, and its report."""

import pytest
import torch

import kvpolicy
from kvpolicy.huggingface.report import CacheReport, LayerReport, holdings
from kvpolicy.testing.models import tiny_model


@pytest.fixture(scope="module")
def cache():
    model = tiny_model()
    cache = kvpolicy.recipe("snapkv", budget=40).cache(model)
    model(torch.arange(100)[None], past_key_values=cache)
    return cache


def test_a_cache_says_its_policy_and_what_it_holds(cache):
    bytes_held = f"{cache.nbytes / 1024:.1f} KiB"
    said = f"seen 100, held 40, bytes {bytes_held}, kvpolicy.recipe('snapkv', budget=40)"
    assert repr(cache) == f"<PolicyCache: {said}>"
    for cell in ("seen", "100", "held", "40", bytes_held):
        assert f">{cell}<" in cache._repr_html_()


def test_an_empty_cache_says_so():
    cache = kvpolicy.recipe("snapkv", budget=40).cache(tiny_model())
    assert repr(cache).startswith("<PolicyCache: seen 0, held 0, bytes 0 B, ")


def test_layers_that_hold_different_numbers_are_a_range():
    layers = [
        LayerReport(layer=at, evicts=True, seen=99, held=held, nbytes=8, full_nbytes=9)
        for at, held in enumerate((30, 10, 20))
    ]
    assert holdings(CacheReport(layers=tuple(layers)))["held"] == "10 to 30"


def test_a_cache_of_few_tokens_is_not_said_to_take_several_hundred_percent():
    layer = LayerReport(layer=0, evicts=True, seen=2, held=2, nbytes=400, full_nbytes=100)
    assert str(CacheReport(layers=(layer,))).splitlines()[1].endswith("   >100 %")
