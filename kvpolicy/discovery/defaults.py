"""The plugin that kvpolicy itself is: the parts that need no paper."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from kvpolicy.cache.storage.offloaded import Offloaded
from kvpolicy.cache.storage.protocol import Storage
from kvpolicy.cache.storage.quantized import Quantized
from kvpolicy.hookspecs import hookimpl
from kvpolicy.prefill import AShape, PrefillPattern, VerticalSlash
from kvpolicy.stages.allocation import Allocator, UniformAllocator
from kvpolicy.stages.compaction import Compactor, GatherCompactor
from kvpolicy.stages.selection import Selector, TopKSelector
from kvpolicy.stages.smoothing import MeanSmoother, Smoother


@hookimpl
def kvpolicy_smoothers() -> Mapping[str, Callable[..., Smoother]]:
    """Offer the plain mean over the window."""
    return {"mean": MeanSmoother}


@hookimpl
def kvpolicy_allocators() -> Mapping[str, Callable[..., Allocator]]:
    """Offer one budget for all."""
    return {"uniform": UniformAllocator}


@hookimpl
def kvpolicy_selectors() -> Mapping[str, Callable[..., Selector]]:
    """Offer the best by score."""
    return {"topk": TopKSelector}


@hookimpl
def kvpolicy_compactors() -> Mapping[str, Callable[..., Compactor]]:
    """Offer the plain copy."""
    return {"gather": GatherCompactor}


@hookimpl
def kvpolicy_storages() -> Mapping[str, Callable[..., Storage[Any]]]:
    """Offer bytes, and the host's memory."""
    return {"quantized": Quantized, "offloaded": Offloaded}


@hookimpl
def kvpolicy_prefill_patterns() -> Mapping[str, Callable[..., PrefillPattern]]:
    """Offer the two patterns of MInference."""
    return {"ashape": AShape, "verticalslash": VerticalSlash}
