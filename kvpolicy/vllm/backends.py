"""An attention backend of vLLM that evicts: the same backend, with what a policy adds.

The exact attention, the layout of blocks and their writing stay the parent's, so this is the same
code for every backend.
"""

from __future__ import annotations

from typing import Any

from vllm.v1.attention.backend import AttentionCGSupport

from kvpolicy.errors import UnsupportedModelError
from kvpolicy.vllm.host import Host
from kvpolicy.vllm.metadata import of_held
from kvpolicy.vllm.spec import EvictedSpec

SERVED = ("CPU_ATTN", "FLASH_ATTN", "FLASHINFER", "TRITON_ATTN")
"""The backends whose seams are known; CPU_ATTN is the one that tests run."""

_STEP = "kvpolicy_step"
_TABLES = "kvpolicy_tables"


class EvictingBuilder:
    """Tells attention which tokens are held; mixed into a backend's metadata builder."""

    kvpolicy_host: Host
    kv_cache_spec: Any
    _cudagraph_support = AttentionCGSupport.NEVER
    supports_update_block_table = False

    @classmethod
    def get_cudagraph_support(cls, *args: Any, **kwargs: Any) -> Any:
        """Keep attention out of CUDA graphs: what it evicts differs from step to step."""
        return AttentionCGSupport.NEVER

    def build(
        self, common_prefix_len: int, common_attn_metadata: Any, *args: Any, **kwargs: Any
    ) -> Any:
        """Build the parent's metadata for the tokens held."""
        parent: Any = super()
        step = self.kvpolicy_host.step(common_attn_metadata, self.kv_cache_spec.block_size)
        if step is None:
            return parent.build(common_prefix_len, common_attn_metadata, *args, **kwargs)
        held = of_held(common_attn_metadata, step.pieces)
        metadata = parent.build(common_prefix_len, held, *args, **kwargs)
        setattr(metadata, _STEP, step)
        setattr(metadata, _TABLES, common_attn_metadata.block_table_tensor)
        return metadata


class EvictingImpl:
    """Evicts behind the parent's attention; mixed into a backend's implementation."""

    kvpolicy_host: Host

    def forward(
        self,
        layer: Any,
        query: Any,
        key: Any,
        value: Any,
        kv_cache: Any,
        attn_metadata: Any,
        output: Any,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Attend, then evict the prompts that end in this step."""
        parent: Any = super()
        given = (layer, query, key, value, kv_cache, attn_metadata)
        result = parent.forward(*given, output, *args, **kwargs)
        step = getattr(attn_metadata, _STEP, None)
        if step is None:
            return result
        tables = getattr(attn_metadata, _TABLES)
        self.kvpolicy_host.observe(self, layer, step, tables, (query, key, value), kv_cache)
        if step.split:
            # Tokens behind a prompt that has just ended must see what it kept.
            again = output.new_zeros(output.shape)
            parent.forward(*given, again, *args, **kwargs)
            for at in step.split:
                row = step.rows[at]
                behind = slice(row.first + row.of_prompt, row.first + row.queries)
                output[behind] = again[behind]
        return result


class EvictingBackend:
    """Names the evicting builder and gives layers the spec of their caches."""

    kvpolicy_host: Host
    kvpolicy_impl: type
    kvpolicy_builder: type

    @classmethod
    def get_impl_cls(cls) -> type:
        """Return the implementation that evicts."""
        return cls.kvpolicy_impl

    @classmethod
    def get_builder_cls(cls) -> type:
        """Return the metadata builder that leaves out what is evicted."""
        return cls.kvpolicy_builder

    @classmethod
    def customize_spec(cls, spec: Any) -> EvictedSpec:
        """Return the parent's spec with eviction."""
        parent: Any = super()
        return EvictedSpec.of(parent.customize_spec(spec), cls.kvpolicy_host.rounding)


def evicting(backend: type, host: Host) -> type:
    """Return the evicting kind of a backend, for the layers of one engine.

    Raises UnsupportedModelError for a backend whose seams are not known.
    """
    own: Any = backend
    if own.get_name() not in SERVED or own.forward_includes_kv_cache_update:
        raise UnsupportedModelError(
            f"kvpolicy does not evict with the attention backend {own.get_name()}. It does with "
            f"{', '.join(SERVED)}: choose one with --attention-backend."
        )
    impl, builder = own.get_impl_cls(), own.get_builder_cls()
    shared = {"kvpolicy_host": host, "__module__": __name__}
    return _kind(
        EvictingBackend,
        backend,
        shared
        | {
            "kvpolicy_impl": _kind(EvictingImpl, impl, shared),
            "kvpolicy_builder": _kind(EvictingBuilder, builder, shared),
        },
    )


def give(layer: Any, backend: Any) -> None:
    """Let an attention layer that exists already use an evicting backend."""
    impl = object.__new__(backend.get_impl_cls())
    vars(impl).update(vars(layer.impl))
    layer.attn_backend, layer.impl = backend, impl


def _kind(mixin: type, parent: type, attributes: dict[str, Any]) -> type:
    return type(f"Evicting{parent.__name__}", (mixin, parent), attributes)
