"""Replay: the prompt's own queries, turned to the next position, stand in for those to come."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from kvpolicy import hookimpl
from kvpolicy.stages.scoring import Scorer
from kvpolicy_replay.scoring import ReplayScorer

__all__ = ["ReplayScorer"]


@hookimpl
def kvpolicy_scorers() -> Mapping[str, Callable[..., Scorer]]:
    """Offer 'replay', which shows another scorer more queries than the last ones."""
    return {"replay": ReplayScorer}


@hookimpl
def kvpolicy_recipes() -> Mapping[str, Mapping[str, Any]]:
    """Offer the recipe 'replay': errors of ReST-KV, of the last queries and of three replays."""
    unpooled = {"name": "spatiotemporal", "pooling": "none"}
    return {"replay": {"scorer": "replay", "smoother": unpooled, "recent": 4}}
