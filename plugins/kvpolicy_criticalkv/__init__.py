"""CriticalKV: ranks positions by attention, then by attention times the size of their values.

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
    """Offer the scorer 'criticalkv'."""
    return {"criticalkv": CriticalScorer}


@hookimpl
def kvpolicy_recipes() -> Mapping[str, Mapping[str, Any]]:
    """Offer the published setting: the L1 norm, and half of the budget for each stage."""
    return {"criticalkv": {"scorer": "criticalkv"}}
