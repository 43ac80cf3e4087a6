"""CaM: adds the values of evicted positions to the kept positions that follow, at random.

Zhang et al., ICML 2024, https://openreview.net/forum?id=LCTmppB165
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from kvpolicy import hookimpl
from kvpolicy.stages.compaction import Compactor
from kvpolicy_cam.compaction import CacheMergingCompactor

__all__ = ["CacheMergingCompactor"]


@hookimpl
def kvpolicy_compactors() -> Mapping[str, Callable[..., Compactor]]:
    """Offer the compactor 'cam'."""
    return {"cam": CacheMergingCompactor}


@hookimpl
def kvpolicy_recipes() -> Mapping[str, Mapping[str, Any]]:
    """Offer the authors' setting: keep sinks and recent positions, and merge at every step."""
    return {"cam": {"scorer": "streamingllm", "compactor": "cam", "sinks": 4, "every": 1}}
