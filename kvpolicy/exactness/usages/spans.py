"""Usages with spans: what is protected stays, spans share a budget, and logits are exact."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import attrs
import torch
from transformers import PreTrainedModel

from kvpolicy import Policy
from kvpolicy.exactness.usages.inputs import PROMPT, padded, replayed, tokens
from kvpolicy.huggingface.cache import PolicyCache
from kvpolicy.huggingface.cache_argument import handed

PADDED = 41
"""The tokens of the second row; the first has PROMPT."""
SPANS = ({"system": (2, 6), "image": (30, 34)}, {"system": (0, 3), "image": (36, PADDED)})
"""The spans of both rows."""


@attrs.frozen(kw_only=True)
class TellingPolicy(Policy):
    """A policy that tells each of its caches of spans, so that any usage is one with spans."""

    told: Mapping[str, Any] = attrs.field(factory=dict, eq=False)

    def cache(self, model: Any, **options: Any) -> PolicyCache:
        """Return an empty cache that knows the spans."""
        return Policy.cache(self, model, **{**self.told, **options})


def telling(policy: Policy, **told: Any) -> TellingPolicy:
    """Return the policy, telling its caches of spans; `told` are arguments of `policy.cache`.

    >>> from kvpolicy.exactness.usages import small_policy
    >>> telling(small_policy("snapkv"), spans={"system": (0, 4)}, protect=True).budget
    24
    """
    fields = {each.name: getattr(policy, each.name) for each in attrs.fields(Policy)}
    return TellingPolicy(**fields, told=told)


def protected_spans(model: PreTrainedModel, policy: Policy) -> float:
    """Two turns of a padded batch whose rows have spans of their own, which stay whole.

    Infinite if a protected position was evicted.
    """
    return _two_turns(model, telling(policy, spans=SPANS, protect=True))


def a_fair_share_for_each_span(model: PreTrainedModel, policy: Policy) -> float:
    """The same turns with a protected image, and shares of the budget for all other text."""
    return _two_turns(model, telling(policy, spans=SPANS, protect=["image"], divider="fair"))


def _two_turns(model: Any, policy: TellingPolicy) -> float:
    lost: list[int] = []

    def turns(cache: PolicyCache) -> None:
        ids, mask = padded((PROMPT, PADDED))
        for new in (ids, tokens(5, 1, 2), tokens(6, 30, 2), tokens(7, 1, 2)):
            if new is not ids:
                mask = torch.cat([mask, torch.ones_like(new)], 1)
            positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -new.shape[1] :]
            model(
                input_ids=new,
                attention_mask=mask,
                position_ids=positions,
                **handed(cache, to=model),
            )
            lost.append(_missing(cache, policy.told["protect"]))

    found = replayed(model, policy, turns)
    return math.inf if any(lost) else found


def _missing(cache: PolicyCache, protect: Any) -> int:
    """Count the protected positions that a head of the cache lacks."""
    return sum(
        len(set(range(*each)) - set(head))
        for layer in cache.policy_layers
        for row, spans in enumerate(SPANS)
        for name, each in spans.items()
        if protect is True or name in protect
        for head in layer.positions[row].tolist()
    )
