"""HeadKV: distributes the budget by a table of the importance of each head of the model.

Fu et al., ICLR 2025, https://openreview.net/forum?id=FJFVmeXusW
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from kvpolicy import hookimpl
from kvpolicy.stages.allocation import Allocator
from kvpolicy_headkv.allocation import HeadTableAllocator

__all__ = ["HeadTableAllocator"]


@hookimpl
def kvpolicy_allocators() -> Mapping[str, Callable[..., Allocator]]:
    """Offer the allocator 'headkv'. It needs a table, so there is no recipe."""
    return {"headkv": HeadTableAllocator}
