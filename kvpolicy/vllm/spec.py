"""The cache of a layer that evicts, as vLLM's scheduler knows it: blocks go when a prompt ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from vllm.v1.core.single_type_kv_cache_manager import FullAttentionManager
from vllm.v1.kv_cache_interface import FullAttentionSpec
from vllm.v1.kv_cache_spec_registry import KVCacheSpecRegistry, register_kv_cache_spec

from kvpolicy.errors import UnsupportedModelError
from kvpolicy.vllm.rounding import Rounding


class EvictedManager(FullAttentionManager):
    """Gives the emptied blocks of a prompt back to the pool.

    They lie in the middle of the request's table: the kept rows fill the first blocks, and the
    block of the prompt's last, partial block of tokens stays where it is.
    """

    def remove_skipped_blocks(
        self,
        request_id: str,
        processed_computed_tokens: int,
        num_prompt_tokens: int | None = None,
    ) -> None:
        """Free the emptied blocks once the worker has processed the whole prompt."""
        super().remove_skipped_blocks(request_id, processed_computed_tokens, num_prompt_tokens)
        if num_prompt_tokens is None or processed_computed_tokens < num_prompt_tokens:
            return
        rounding: Rounding = self.kv_cache_spec.rounding
        evicted = rounding.evicted_blocks(num_prompt_tokens, block=self.block_size)
        last = num_prompt_tokens // self.block_size
        self._remove_blocks_in_range(request_id, last - evicted, last)


# A spec without its manager would be served as full attention, so this module registers it. vLLM's
# own specs must be there first: it registers them only if there is none yet.
KVCacheSpecRegistry._ensure_registered()


@register_kv_cache_spec(manager_class=EvictedManager, uniform_type_base_spec=FullAttentionSpec)
@dataclass(frozen=True, kw_only=True)
class EvictedSpec(FullAttentionSpec):
    """Full attention whose prompts are evicted."""

    rounding: Rounding | None = None

    @classmethod
    def of(cls, spec: FullAttentionSpec, rounding: Rounding) -> EvictedSpec:
        """Return the spec of the same layer with eviction."""
        same = {each.name: getattr(spec, each.name) for each in fields(spec) if each.init}
        return cls(**same, rounding=rounding)

    @classmethod
    def merge(cls, specs: Sequence[Any]) -> EvictedSpec:
        """Merge the specs of the layers of a group."""
        if len({each.rounding for each in specs}) > 1:
            raise UnsupportedModelError("layers of one cache group evict differently.")
        merged: EvictedSpec = replace(super().merge(specs), rounding=specs[0].rounding)
        return merged
