"""KVCompose: each layer keeps as many positions in every head as its heads need on average.

Akulov et al., 2025, https://arxiv.org/abs/2509.05165
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from kvpolicy import hookimpl
from kvpolicy.stages.allocation import Allocator
from kvpolicy_kvcompose.allocation import CompositeAllocator

__all__ = ["CompositeAllocator"]


@hookimpl
def kvpolicy_allocators() -> Mapping[str, Callable[..., Allocator]]:
    """Offer the allocator 'kvcompose', with one budget for the whole model and even heads."""
    return {"kvcompose": CompositeAllocator}
