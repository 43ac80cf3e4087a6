"""Counted memory: what is allocated at once, without a device."""

import attrs
import pytest
import torch

from benchmarks import bounds
from benchmarks.counted_memory import counted_rows, peak_of, peaks
from benchmarks.gpu.models import MODELS
from benchmarks.gpu.scale import REAL, TOY

KIB = 1024


def test_what_is_freed_counts_no_more():
    def call():
        one = torch.zeros(KIB, dtype=torch.uint8)
        two = torch.cat([one, one])
        del one
        three = two[:KIB].clone()
        del two
        return three.add_(1)

    assert peak_of(call) == 3 * KIB


def test_views_and_writes_in_place_count_nothing():
    def call():
        one = torch.zeros(KIB, dtype=torch.uint8)
        one.view(2, -1)[0].add_(1)

    assert peak_of(call) == KIB


def test_eviction_and_chunks_take_less_and_a_longer_budget_more():
    found = {
        (row.settings["model"], row.variant): row.value for row in counted_rows(TOY, length=2000)
    }
    for name in MODELS:
        full, evicted = found[name, "full"], found[name, "evicted"]
        saved = TOY.layers * (2000 - TOY.budget) * TOY.kv_bytes
        assert full > found[name, "full, chunked MLP"] > found[name, "evicted, chunked MLP"]
        # The layer that is being read still has its whole cache.
        assert saved / 2 <= (full - evicted) * 2**30 <= saved

    roomy = dict(peaks("Llama-3.1-8B", attrs.evolve(TOY, budget=1000), 2000))
    assert roomy["evicted"] > found["Llama-3.1-8B", "evicted"] * 2**30


def test_128k_tokens_at_8b_take_two_thirds_evicted_and_less_than_half_in_chunks_too():
    few, many, length = 2, 32, 131_072
    layer = 2 * bounds.LLAMA.layer_parameters
    found = dict(peaks("Llama-3.1-8B", attrs.evolve(REAL, layers=few), length))
    whole = {
        name: peak
        + (many - few)
        * (layer + REAL.kv_bytes * (length if name.startswith("full") else REAL.budget))
        for name, peak in found.items()
    }
    assert whole["evicted"] <= 0.66 * whole["full"]
    assert whole["evicted, chunked MLP"] <= 0.47 * whole["full"]
    expected = {
        "full": bounds.peak_bytes(bounds.LLAMA, length),
        "evicted": bounds.peak_bytes(bounds.LLAMA, length, kept=REAL.budget),
        "evicted, chunked MLP": bounds.peak_bytes(
            bounds.LLAMA, length, kept=REAL.budget, mlp_chunk=REAL.mlp_chunk
        ),
    }
    for name, bound in expected.items():
        assert whole[name] == pytest.approx(bound, rel=0.02)
