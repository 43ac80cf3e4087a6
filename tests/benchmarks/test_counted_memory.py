"""Counted memory: what is allocated at once, without a device."""

import attrs
import torch

from benchmarks.counted_memory import counted_rows, peak_of
from benchmarks.gpu.models import MODELS
from benchmarks.gpu.scale import TOY

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

    roomy = {
        (row.settings["model"], row.variant): row.value
        for row in counted_rows(attrs.evolve(TOY, budget=1000), length=2000)
    }
    assert roomy["Llama-3.1-8B", "evicted"] > found["Llama-3.1-8B", "evicted"]
