"""KVzip: keeps what the model attends to while it repeats the prompt, whatever will be asked.

Kim et al., NeurIPS 2025, https://arxiv.org/abs/2505.23416
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from kvpolicy import hookimpl
from kvpolicy.stages.scoring import Scorer
from kvpolicy_kvzip.scoring import RepetitionScorer

__all__ = ["RepetitionScorer"]


@hookimpl
def kvpolicy_scorers() -> Mapping[str, Callable[..., Scorer]]:
    """Offer the scorer 'kvzip', the largest attention while the prompt is repeated."""
    return {"kvzip": RepetitionScorer}


@hookimpl
def kvpolicy_recipes() -> Mapping[str, Mapping[str, Any]]:
    """Offer the published setting, one budget for the whole model, without and with norms."""
    parts = {"allocator": "layerdefensivekv", "group": "max", "sinks": 4, "recent": 4}
    return {
        "kvzip": parts | {"scorer": "kvzip"},
        "kvzipplus": parts | {"scorer": {"name": "kvzip", "plus": True}},
    }
