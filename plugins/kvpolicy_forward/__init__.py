"""Forward selection: positions are added round by round, by the exact error of the set kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from kvpolicy import hookimpl
from kvpolicy.stages.scoring import Scorer
from kvpolicy_forward.scoring import ForwardScorer

__all__ = ["ForwardScorer"]


@hookimpl
def kvpolicy_scorers() -> Mapping[str, Callable[..., Scorer]]:
    """Offer 'forward', the order in which positions bring a layer's output back."""
    return {"forward": ForwardScorer}
