"""KeyDiff: keeps keys that differ from the others, without attention.

Park et al., NeurIPS 2025, https://arxiv.org/abs/2504.15364
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from kvpolicy import hookimpl
from kvpolicy.stages.scoring import Scorer
from kvpolicy_keydiff.scoring import KeyDiffScorer

__all__ = ["KeyDiffScorer"]


@hookimpl
def kvpolicy_scorers() -> Mapping[str, Callable[..., Scorer]]:
    """Offer the scorer 'keydiff'."""
    return {"keydiff": KeyDiffScorer}


@hookimpl
def kvpolicy_recipes() -> Mapping[str, Mapping[str, Any]]:
    """Offer the paper's setting: evict after every forward, and protect no token."""
    return {"keydiff": {"scorer": "keydiff", "recent": 0, "every": 1}}
