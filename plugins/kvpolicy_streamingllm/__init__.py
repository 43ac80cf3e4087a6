"""StreamingLLM: keeps attention sinks and the most recent positions.

Xiao et al., ICLR 2024, https://arxiv.org/abs/2309.17453
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from kvpolicy import hookimpl
from kvpolicy.stages.scoring import Scorer
from kvpolicy_streamingllm.scoring import RecencyScorer

__all__ = ["RecencyScorer"]


@hookimpl
def kvpolicy_scorers() -> Mapping[str, Callable[..., Scorer]]:
    """Offer the scorer 'streamingllm', recency."""
    return {"streamingllm": RecencyScorer}


@hookimpl
def kvpolicy_recipes() -> Mapping[str, Mapping[str, Any]]:
    """Offer four sinks and the latest tokens, evicted at every step, with positions by slot."""
    return {
        "streamingllm": {
            "scorer": "streamingllm",
            "sinks": 4,
            "every": 1,
            "slot_positions": True,
        }
    }
