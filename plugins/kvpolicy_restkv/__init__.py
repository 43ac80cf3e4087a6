"""ReST-KV: scores by reconstruction error, smoothed over time and space.

An et al., ICLR 2026, https://openreview.net/forum?id=PhEHuo7oMm
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from kvpolicy import hookimpl
from kvpolicy.stages.scoring import Scorer
from kvpolicy.stages.smoothing import Smoother
from kvpolicy_restkv.joint_scoring import JointReconstructionScorer
from kvpolicy_restkv.scoring import ReconstructionScorer
from kvpolicy_restkv.smoothing import SpatiotemporalSmoother
from kvpolicy_restkv.windowed_scoring import WindowedReconstructionScorer

__all__ = [
    "JointReconstructionScorer",
    "ReconstructionScorer",
    "SpatiotemporalSmoother",
    "WindowedReconstructionScorer",
]


@hookimpl
def kvpolicy_scorers() -> Mapping[str, Callable[..., Scorer]]:
    """Offer reconstruction errors: of averaged attention, of each query, of a group of heads."""
    return {
        "restkv": ReconstructionScorer,
        "windowedrestkv": WindowedReconstructionScorer,
        "jointrestkv": JointReconstructionScorer,
    }


@hookimpl
def kvpolicy_smoothers() -> Mapping[str, Callable[..., Smoother]]:
    """Offer the smoother 'spatiotemporal', an exponential average with adaptive pooling."""
    return {"spatiotemporal": SpatiotemporalSmoother}


@hookimpl
def kvpolicy_recipes() -> Mapping[str, Mapping[str, Any]]:
    """Offer the published setting, which is that of the parts' defaults."""
    return {"restkv": {"scorer": "restkv", "smoother": "spatiotemporal"}}
