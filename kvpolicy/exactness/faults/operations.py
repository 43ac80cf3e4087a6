"""The operations of a cache that an exception may end early."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kvpolicy.exactness.usages.inputs import tokens
from kvpolicy.huggingface.cache import PolicyCache
from kvpolicy.huggingface.cache_argument import handed

Operation = Callable[[Any, PolicyCache], object]
BATCH = 2
"""The rows of a conversation."""


def _reads(seed: int, length: int) -> Operation:
    def read(model: Any, cache: PolicyCache) -> Tensor:
        return probe(model, cache, seed, length)

    return read


def probe(model: Any, cache: PolicyCache, seed: int, length: int) -> Tensor:
    """Read `length` tokens, and return their logits."""
    batch = cache.policy_layers[0].batch or BATCH
    with torch.no_grad():
        logits: Tensor = model(tokens(seed, length, batch), **handed(cache, to=model)).logits
    return logits


def _save(model: Any, cache: PolicyCache) -> None:
    with tempfile.TemporaryDirectory() as folder:
        cache.save(Path(folder) / "cache.safetensors")


OPERATIONS: Mapping[str, Operation] = {
    "decode": _reads(1, 1),
    "second turn": _reads(2, 5),
    "crop": lambda model, cache: cache.crop(-1),
    "reorder": lambda model, cache: cache.reorder_cache(torch.tensor([1, 0])),
    "repeat": lambda model, cache: cache.batch_repeat_interleave(2),
    "select": lambda model, cache: cache.batch_select_indices(torch.tensor([1])),
    "reset": lambda model, cache: cache.reset(),
    "clone": lambda model, cache: cache.clone(),
    "save": _save,
}
"""Each is tried on a cache that has read a prompt and decoded three tokens."""
