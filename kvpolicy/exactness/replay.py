"""The replay: reads recorded forwards again through a full cache that masks what was evicted.

The full cache is transformers' `DynamicCache`. Its attention sees, in each layer, only the
positions that the evicted cache held before that forward. Nothing of kvpolicy's storage, masks or
observation takes part. If a policy renumbers slots, the replay rotates each full key to its slot.
If a remainder stands for what was evicted, the replay averages those keys and values by itself.
"""

from __future__ import annotations

import torch
from transformers import PreTrainedModel
from transformers.masking_utils import eager_mask

from kvpolicy.exactness.attention import replaced_attention
from kvpolicy.exactness.forwards import Forward
from kvpolicy.exactness.full_cache import FullCache, masked_attention
from kvpolicy.exactness.slot_rotation import slot_frequencies
from kvpolicy.huggingface.cache import PolicyCache
from kvpolicy.huggingface.cache_argument import handed
from kvpolicy.pipeline.capabilities import is_averaging

NAME = "kvpolicy-masked-full-cache"


def max_logit_difference(
    model: PreTrainedModel, forwards: list[Forward], cache: PolicyCache
) -> float:
    """Replay the forwards of a cache; return the largest difference of a real token's logit.

    NaN if a logit is not finite. Raises ValueError if nothing was evicted before any of the
    forwards: then there is nothing to compare.
    """
    evicting = _evicting(cache)
    if not any(_has_evicted(forward, evicting) for forward in forwards):
        raise ValueError(f"{len(forwards)} forwards were recorded, and nothing was evicted in them")
    return replay_difference(model, forwards, cache)


@torch.no_grad()
def replay_difference(model: PreTrainedModel, forwards: list[Forward], cache: PolicyCache) -> float:
    """Do what `max_logit_difference` does, also if nothing was evicted."""
    frequencies = slot_frequencies(model) if cache.policy.slot_positions else None
    evicting, averages = _evicting(cache), is_averaging(cache.policy.compactor)
    full = FullCache(config=model.config.get_text_config(decoder=True))
    differences = [torch.zeros(())]
    for forward in forwards:
        for change in forward.changes:
            change(full)
        attention = masked_attention(forward, full, evicting, frequencies, averages=averages)
        with replaced_attention(model, attention, name=NAME, mask=eager_mask):
            logits = model(**forward.arguments | handed(full, to=model)).logits
        real = forward.real[:, -logits.shape[1] :]
        differences.append((logits - forward.logits).abs().amax(-1)[real].max().float())
    return float(torch.stack(differences).max())


def _evicting(cache: PolicyCache) -> set[int]:
    """Return the indices of the layers that evict."""
    return {index for index, layer in enumerate(cache.layers) if layer in cache.policy_layers}


def _has_evicted(forward: Forward, evicting: set[int]) -> bool:
    """Whether a head lacks a position that its row has seen."""
    read = forward.real[:, : forward.seen].sum(1, keepdim=True)
    return any(
        bool(((forward.positions[layer] >= 0).sum(-1) < read).any())
        for layer in (evicting if forward.seen else ())
    )
