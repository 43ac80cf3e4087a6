"""What a policy adds to a worker: its layers evict, and it knows the requests of each step."""

from __future__ import annotations

from typing import Any

from vllm.logger import init_logger
from vllm.model_executor.layers.attention import Attention

from kvpolicy.errors import UnsupportedModelError
from kvpolicy.vllm.asked import Asked, asked_in
from kvpolicy.vllm.backends import evicting, give
from kvpolicy.vllm.engines import check_block, check_engine
from kvpolicy.vllm.host import Host
from kvpolicy.vllm.layers import facts_of
from kvpolicy.vllm.pages import Pages
from kvpolicy.vllm.wording import started

logger = init_logger("vllm.kvpolicy")


class Evicting:
    """Mixed into one of vLLM's workers."""

    vllm_config: Any
    model_runner: Any
    is_driver_worker: bool
    kvpolicy_asked: Asked
    kvpolicy_host: Host

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        """Load the weights, and let the attention layers evict."""
        config = self.vllm_config
        parent: Any = super()
        asked = asked_in(config.additional_config)
        if asked is None:
            raise UnsupportedModelError("this worker evicts, but no policy was asked for.")
        check_engine(asked, config)
        parent.load_model(*args, **kwargs)
        layers = self._kvpolicy_layers()
        self.kvpolicy_asked = asked
        facts = facts_of(asked.policy, self.model_runner.get_model(), layers)
        self.kvpolicy_host = Host(asked, self.model_runner, facts)
        kinds = {type(layer.impl): layer.attn_backend for layer in layers.values()}
        backends = {impl: evicting(each, self.kvpolicy_host) for impl, each in kinds.items()}
        for layer in layers.values():
            give(layer, backends[type(layer.impl)])

    def _kvpolicy_layers(self) -> dict[str, Any]:
        """Return the attention layers in the order of the model."""
        found = self.vllm_config.compilation_config.static_forward_context
        others = [name for name, each in found.items() if type(each) is not Attention]
        known = [name for name in others if hasattr(found[name], "get_kv_cache_spec")]
        if known or len(others) == len(found):
            raise UnsupportedModelError(
                f"the cache of {', '.join(known) or 'no layer'} is not that of full attention: "
                "kvpolicy evicts from models all of whose layers have it."
            )
        return {name: each for name, each in found.items() if name not in others}

    def initialize_from_config(self, kv_cache_config: Any) -> None:
        """Allocate the cache, find out its layout, and say which policy is on."""
        super().initialize_from_config(kv_cache_config)  # type: ignore[misc]
        block = self._kvpolicy_block(kv_cache_config)
        check_block(self.kvpolicy_asked.policy, block)
        pages: dict[Any, Pages] = {}
        for name, layer in self._kvpolicy_layers().items():
            dims = layer.head_size, layer.head_size_v
            key = layer.kv_cache.shape[1:], layer.kv_cache.stride()
            if layer.kv_cache.shape[2] != block:
                raise UnsupportedModelError(
                    f"blocks of {block} tokens are cut into blocks of {layer.kv_cache.shape[2]} "
                    f"by the attention backend. Use --block-size {layer.kv_cache.shape[2]}."
                )
            if key not in pages:
                heads = layer.num_kv_heads
                pages[key] = Pages.of(layer.impl, layer, layer.kv_cache, heads, dims)
            self.kvpolicy_host.pages[name] = pages[key]
        if self.is_driver_worker:
            logger.info(started(self.kvpolicy_asked, block))

    def _kvpolicy_block(self, kv_cache_config: Any) -> int:
        sizes = {group.kv_cache_spec.block_size for group in kv_cache_config.kv_cache_groups}
        if len(sizes) != 1 or len(kv_cache_config.kv_cache_groups) != 1:
            raise UnsupportedModelError(
                "vLLM keeps the layers of this model in several groups of caches, which kvpolicy "
                "does not evict from."
            )
        return int(sizes.pop())

    def execute_model(self, scheduler_output: Any) -> Any:
        """Run a step, with its requests known to the layers."""
        with self.kvpolicy_host.running(scheduler_output):
            return super().execute_model(scheduler_output)  # type: ignore[misc]
