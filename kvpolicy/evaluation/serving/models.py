"""Models in folders, as serving engines load them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kvpolicy.evaluation.needle.loading import MODEL
from kvpolicy.testing.models import tiny_model

MODELS = ("llama", "qwen3", "mistral", "needle")
"""Families of tiny models, and the model of the needle task."""

_SIZES: Mapping[str, Any] = {
    "head_dim": 32,  # the smallest that vLLM's attention on a CPU knows
    "hidden_size": 128,
    "vocab_size": 256,
    "max_position_embeddings": 2048,
    "initializer_range": 0.1,
}


def saved(name: str, folder: Path) -> Path:
    """Return the folder of a model; a tiny one is written into `folder` first."""
    if name == "needle":
        return MODEL
    place = folder / name
    if not place.exists():
        tiny_model(name, **_SIZES).save_pretrained(place)
    return place
