"""The oracle: knows the future queries, and keeps the set of positions that they need most.

For evaluation only: no method can know these queries. There is no recipe, because recorded queries
are not plain data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from kvpolicy import hookimpl
from kvpolicy.stages.scoring import Scorer
from kvpolicy_oracle.foresight import Foresight
from kvpolicy_oracle.scoring import OracleScorer
from kvpolicy_oracle.single_scoring import SingleOracleScorer

__all__ = ["Foresight", "OracleScorer", "SingleOracleScorer"]


@hookimpl
def kvpolicy_scorers() -> Mapping[str, Callable[..., Scorer]]:
    """Offer an oracle that judges sets, and one that judges each position alone."""
    return {"oracle": OracleScorer, "oracle_single": SingleOracleScorer}
