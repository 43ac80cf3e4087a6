"""Carried: what a layer does not need of its budget goes to the layers behind it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from kvpolicy import hookimpl
from kvpolicy.stages.allocation import Allocator
from kvpolicy_carried.allocation import CarriedAllocator

__all__ = ["CarriedAllocator"]


@hookimpl
def kvpolicy_allocators() -> Mapping[str, Callable[..., Allocator]]:
    """Offer the allocator 'carried', which goes layer by layer."""
    return {"carried": CarriedAllocator}
