"""kvpolicy's own plugin, 'core': the parts that come from no paper, storages, prefill patterns."""

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
from kvpolicy.stages.division import Divider, FairDivider
from kvpolicy.stages.selection import Selector, TopKSelector
from kvpolicy.stages.smoothing import MeanSmoother, Smoother


@hookimpl
def kvpolicy_smoothers() -> Mapping[str, Callable[..., Smoother]]:
    """Offer 'mean', the mean over the window."""
    return {"mean": MeanSmoother}


@hookimpl
def kvpolicy_allocators() -> Mapping[str, Callable[..., Allocator]]:
    """Offer 'uniform', the same budget for every head."""
    return {"uniform": UniformAllocator}


@hookimpl
def kvpolicy_selectors() -> Mapping[str, Callable[..., Selector]]:
    """Offer 'topk', the positions with the highest scores."""
    return {"topk": TopKSelector}


@hookimpl
def kvpolicy_compactors() -> Mapping[str, Callable[..., Compactor]]:
    """Offer 'gather', a copy of the kept rows."""
    return {"gather": GatherCompactor}


@hookimpl
def kvpolicy_storages() -> Mapping[str, Callable[..., Storage[Any]]]:
    """Offer 'quantized', rows in 8 or 4 bits, and 'offloaded', rows in the host's memory."""
    return {"quantized": Quantized, "offloaded": Offloaded}


@hookimpl
def kvpolicy_prefill_patterns() -> Mapping[str, Callable[..., PrefillPattern]]:
    """Offer 'ashape' and 'verticalslash', two patterns of MInference."""
    return {"ashape": AShape, "verticalslash": VerticalSlash}


@hookimpl
def kvpolicy_dividers() -> Mapping[str, Callable[..., Divider]]:
    """Offer 'fair', the same share of each span."""
    return {"fair": FairDivider}
