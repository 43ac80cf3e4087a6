"""ChunkKV: chunks of neighbouring tokens stay or go as a whole.

Liu et al., NeurIPS 2025, https://arxiv.org/abs/2502.00299
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from kvpolicy import hookimpl
from kvpolicy.stages.smoothing import Smoother
from kvpolicy_chunkkv.smoothing import ChunkSmoother

__all__ = ["ChunkSmoother"]


@hookimpl
def kvpolicy_smoothers() -> Mapping[str, Callable[..., Smoother]]:
    """Offer the mean over chunks and heads."""
    return {"chunkkv": ChunkSmoother}


@hookimpl
def kvpolicy_recipes() -> Mapping[str, Mapping[str, Any]]:
    """Offer the paper's chunks of ten, scored by the attention of the last queries."""
    return {"chunkkv": {"scorer": "snapkv", "smoother": "chunkkv"}}
