"""The oracle: knows what will be asked of the cache, and keeps what those answers need most.

For evaluation only: no method can know it. It has no recipe, since what it knows is no plain data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from kvpolicy import hookimpl
from kvpolicy.stages.scoring import Scorer
from kvpolicy_oracle.scoring import Foresight, OracleScorer

__all__ = ["Foresight", "OracleScorer"]


@hookimpl
def kvpolicy_scorers() -> Mapping[str, Callable[..., Scorer]]:
    """Offer hindsight."""
    return {"oracle": OracleScorer}
