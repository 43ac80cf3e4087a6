"""The oracle: knows the future queries, and keeps the positions that they need most.

For evaluation only: no method can know these queries. There is no recipe, because recorded queries
are not plain data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from kvpolicy import hookimpl
from kvpolicy.stages.scoring import Scorer
from kvpolicy_oracle.scoring import Foresight, OracleScorer

__all__ = ["Foresight", "OracleScorer"]


@hookimpl
def kvpolicy_scorers() -> Mapping[str, Callable[..., Scorer]]:
    """Offer the scorer 'oracle'."""
    return {"oracle": OracleScorer}
