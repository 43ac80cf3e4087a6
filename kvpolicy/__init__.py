"""KV-cache eviction policies for Hugging Face models, composed from plugins.

    policy = kvpolicy.compose(scorer="restkv", smoother="spatiotemporal", budget=1024)
    model.generate(**inputs, past_key_values=policy.cache(model))

`kvpolicy list` shows the parts that are installed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvpolicy.compose import compose, recipe
from kvpolicy.hookspecs import hookimpl
from kvpolicy.policy import Policy
from kvpolicy.registry import installed
from kvpolicy.stages.observation import Observation
from kvpolicy.stages.selection import Selection

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = [
    "Observation",
    "Policy",
    "Selection",
    "compose",
    "hookimpl",
    "installed",
    "recipe",
    "restore",
]


def restore(model: PreTrainedModel) -> None:
    """Bring `model`'s attention back as `policy.cache(model)` found it; harmless if it is.

    Caches of that model are refused afterwards, since eviction could not observe it any more;
    entering one by `with` observes it again.
    """
    from kvpolicy.huggingface.cache import restore as restore_attention

    restore_attention(model)
