"""ThinK: sets the key channels to zero that contribute least to the attention.

Xu et al., ICLR 2025, https://arxiv.org/abs/2407.21018
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from kvpolicy import hookimpl
from kvpolicy.stages.compaction import Compactor
from kvpolicy_think.compaction import ChannelPruningCompactor

__all__ = ["ChannelPruningCompactor"]


@hookimpl
def kvpolicy_compactors() -> Mapping[str, Callable[..., Compactor]]:
    """Offer the compactor 'think', which prunes key channels."""
    return {"think": ChannelPruningCompactor}


@hookimpl
def kvpolicy_recipes() -> Mapping[str, Mapping[str, Any]]:
    """Offer SnapKV with pruned keys, with the setting of the authors' LongBench script."""
    return {
        "think": {
            "scorer": "snapkv",
            "smoother": {"name": "pooling", "pooling": "max", "width": 7},
            "compactor": "think",
        }
    }
