"""CriticalKV: positions by attention first, then by attention times the size of their values.

Feng et al., https://arxiv.org/abs/2502.03805
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from kvpolicy import hookimpl
from kvpolicy.stages.scoring import Scorer
from kvpolicy_criticalkv.scoring import CriticalScorer

__all__ = ["CriticalScorer"]


@hookimpl
def kvpolicy_scorers() -> Mapping[str, Callable[..., Scorer]]:
    """Offer the two stages, on pooled attention."""
    return {"criticalkv": CriticalScorer}


@hookimpl
def kvpolicy_recipes() -> Mapping[str, Mapping[str, Any]]:
    """Offer the published setting: the L1 norm, half of the budget for each stage."""
    return {"criticalkv": {"scorer": "criticalkv"}}
