"""GRKV: fits the kept values to the outputs that the last queries had before the eviction.

Peng et al., 2026, https://arxiv.org/abs/2605.31105
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from kvpolicy import hookimpl
from kvpolicy.stages.compaction import Compactor
from kvpolicy_grkv.compaction import ValueFittingCompactor

__all__ = ["ValueFittingCompactor"]


@hookimpl
def kvpolicy_compactors() -> Mapping[str, Callable[..., Compactor]]:
    """Offer the compactor 'grkv', which works with any scorer."""
    return {"grkv": ValueFittingCompactor}
