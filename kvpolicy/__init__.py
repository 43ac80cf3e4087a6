"""KV-cache eviction policies for Hugging Face models, composed from plugins.

    policy = kvpolicy.compose(scorer="restkv", smoother="spatiotemporal", budget=1024)
    cache = policy.cache(model)
    model.generate(**inputs, past_key_values=cache)

`kvpolicy list` shows the parts that are installed.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kvpolicy.budget import within
    from kvpolicy.cache.memory.contents import Contents
    from kvpolicy.cache.memory.saved import SAVED
    from kvpolicy.cache.storage.protocol import Storage
    from kvpolicy.composition import compose, recipe
    from kvpolicy.discovery.registry import installed
    from kvpolicy.errors import KvpolicyError
    from kvpolicy.evaluation.evaluate import evaluate  # with its options, for completion
    from kvpolicy.hookspecs import hookimpl
    from kvpolicy.image_spans import find_spans
    from kvpolicy.observation.fold import Reduce
    from kvpolicy.observation.observation import Observation
    from kvpolicy.policy import Policy
    from kvpolicy.prefill.pattern import PrefillPattern
    from kvpolicy.public import chunked_mlp, load, memory_efficient_attention, restore, save
    from kvpolicy.stages.allocation import Allocator
    from kvpolicy.stages.compaction import Compactor, GatherCompactor
    from kvpolicy.stages.division import Divider
    from kvpolicy.stages.scoring import RunningScorer, Scorer
    from kvpolicy.stages.selection import Selection, Selector, TopKSelector
    from kvpolicy.stages.smoothing import Smoother
    from kvpolicy.task import Metric, Sample, Task

    __version__: str

_MODULES = {
    "SAVED": "kvpolicy.cache.memory.saved",
    "Allocator": "kvpolicy.stages.allocation",
    "Compactor": "kvpolicy.stages.compaction",
    "Contents": "kvpolicy.cache.memory.contents",
    "Divider": "kvpolicy.stages.division",
    "GatherCompactor": "kvpolicy.stages.compaction",
    "KvpolicyError": "kvpolicy.errors",
    "Metric": "kvpolicy.task",
    "Observation": "kvpolicy.observation.observation",
    "Policy": "kvpolicy.policy",
    "PrefillPattern": "kvpolicy.prefill.pattern",
    "Reduce": "kvpolicy.observation.fold",
    "RunningScorer": "kvpolicy.stages.scoring",
    "Sample": "kvpolicy.task",
    "Scorer": "kvpolicy.stages.scoring",
    "Selection": "kvpolicy.stages.selection",
    "Selector": "kvpolicy.stages.selection",
    "Smoother": "kvpolicy.stages.smoothing",
    "Storage": "kvpolicy.cache.storage.protocol",
    "Task": "kvpolicy.task",
    "TopKSelector": "kvpolicy.stages.selection",
    "chunked_mlp": "kvpolicy.public",
    "compose": "kvpolicy.composition",
    "evaluate": "kvpolicy.public",
    "find_spans": "kvpolicy.image_spans",
    "fused_sinks": "kvpolicy.public",
    "hookimpl": "kvpolicy.hookspecs",
    "installed": "kvpolicy.discovery.registry",
    "load": "kvpolicy.public",
    "memory_efficient_attention": "kvpolicy.public",
    "recipe": "kvpolicy.composition",
    "restore": "kvpolicy.public",
    "save": "kvpolicy.public",
    "within": "kvpolicy.budget",
}
"""The module of each public name. It is imported when the name is first used, as PyTorch is."""

__all__ = [
    "SAVED",
    "Allocator",
    "Compactor",
    "Contents",
    "Divider",
    "GatherCompactor",
    "KvpolicyError",
    "Metric",
    "Observation",
    "Policy",
    "PrefillPattern",
    "Reduce",
    "RunningScorer",
    "Sample",
    "Scorer",
    "Selection",
    "Selector",
    "Smoother",
    "Storage",
    "Task",
    "TopKSelector",
    "__version__",
    "chunked_mlp",
    "compose",
    "evaluate",
    "find_spans",
    "hookimpl",
    "installed",
    "load",
    "memory_efficient_attention",
    "recipe",
    "restore",
    "save",
    "within",
]


def __getattr__(name: str) -> Any:
    """Import a public name, or a module of kvpolicy, when it is first used."""
    if name == "__version__":
        from importlib.metadata import version

        found: Any = version("kvpolicy")
    elif name in _MODULES:
        found = getattr(import_module(_MODULES[name]), name)
    else:
        return _module(name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return __all__


def _module(name: str) -> Any:
    """Return the module of that name, such as `kvpolicy.errors`."""
    if not name.startswith("_"):
        try:
            return import_module(f"kvpolicy.{name}")
        except ModuleNotFoundError as error:
            if error.name != f"kvpolicy.{name}":
                raise
    raise AttributeError(f"module 'kvpolicy' has no attribute {name!r}")
