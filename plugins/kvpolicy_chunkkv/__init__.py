"""ChunkKV: keeps or evicts whole chunks of neighbouring tokens.

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
    """Offer the smoother 'chunkkv', the mean over chunks and heads."""
    return {"chunkkv": ChunkSmoother}


@hookimpl
def kvpolicy_recipes() -> Mapping[str, Mapping[str, Any]]:
    """Offer the paper's setting: chunks of ten tokens, scored by the attention of the window."""
    return {"chunkkv": {"scorer": "snapkv", "smoother": "chunkkv"}}
