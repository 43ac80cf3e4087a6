"""Evictions of one layer by kvpolicy, in the settings that kvpress has, too.

python -m benchmarks.beside_kvpress.ours snapkv lagkv
"""

from __future__ import annotations

from typing import Any

import torch

import kvpolicy
from benchmarks.beside_kvpress.measured import Call, run
from kvpolicy import Observation
from kvpolicy.cache.eviction.one_layer import evicted
from kvpolicy.observation.rotary import PlainRotary

HEADS, KV_HEADS, DIM, MODEL, WINDOW = 32, 8, 128, 4096, 64
BY_WINDOW = ("adakv", "chunkkv", "criticalkv", "pyramidkv", "snapkv")


def call_of(method: str, length: int) -> Call:
    """Return a call that evicts half of a random layer of so many positions."""
    torch.manual_seed(0)
    scorer = "criticalkv" if method == "criticalkv" else "snapkv"
    window: dict[str, Any] = {"scorer": {"name": scorer, "window": WINDOW}}
    changes = window if method in BY_WINDOW else {}
    policy = kvpolicy.recipe(method, budget=length // 2, **changes)
    shown = length if policy.scorer.window is None else policy.scorer.window
    layer = Observation(
        queries=torch.randn(1, HEADS, shown, DIM),
        keys=torch.randn(1, KV_HEADS, length, DIM),
        values=torch.randn(1, KV_HEADS, length, DIM),
        output_weight=torch.randn(MODEL, HEADS * DIM) / MODEL**0.5,
        rotary=PlainRotary(dim=DIM),
        budget=length // 2,
        num_layers=32,
        layer=15,
    )
    return lambda: evicted(policy, layer)


if __name__ == "__main__":
    run(call_of)
