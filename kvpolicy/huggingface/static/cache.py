"""The static cache that a policy gives to transformers: decode steps can be captured."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from kvpolicy.cache.eviction.spans import BatchSpans
from kvpolicy.cache.static.memory import StaticMemory
from kvpolicy.errors import CacheStateError, InvalidValueError
from kvpolicy.huggingface.attention.masks import check_given_mask
from kvpolicy.huggingface.cache import PolicyCache
from kvpolicy.huggingface.static.attention import handed_out
from kvpolicy.huggingface.static.fit import static_storage
from kvpolicy.huggingface.static.layer import StaticPolicyLayer
from kvpolicy.pipeline.pipeline import Pipeline
from kvpolicy.prefill.pattern import PrefillPattern

CLOSED = (
    "this cache was closed, by kvpolicy.restore(model) or by leaving its `with` block. Use the "
    "cache inside its `with`, or make a new one: policy.cache(model, static=True)."
)
STEPS_KNOW_NO_SPANS = (
    "spans do not go with static=True and every=1: the step that evicts is captured, and it knows "
    "sinks and recent tokens only. Use every=None, or static=False."
)
READY_MASK = (
    "the attention_mask of a decoded token was given ready, with a column for every token, and "
    "static rows cannot follow it. Give a 2D attention_mask, or none. Nothing was changed."
)
NO_GRADIENTS = (
    "a static cache has no gradients, but the new keys need them. Decode under torch.no_grad(), "
    "or use static=False."
)


class StaticPolicyCache(PolicyCache):
    """Reads prompts as `PolicyCache` does; the tokens behind them go to buffers of fixed size.

    A forward of one token asks nothing of the host, so `torch.compile` takes it as one graph, and
    a replay of it decodes the next position. `generate` compiles it by itself on a GPU.
    """

    layer_class = StaticPolicyLayer

    def __init__(
        self,
        policy: Pipeline,
        model: nn.Module,
        *,
        capacity: int | None,
        prefill: PrefillPattern | None = None,
        spans: BatchSpans | None = None,
    ) -> None:
        """Make an empty cache; nothing of the model changes if it is refused."""
        if spans is not None and policy.every is not None:
            raise InvalidValueError(STEPS_KNOW_NO_SPANS)
        storage: Any = static_storage(policy, model, capacity)
        super().__init__(policy, model, prefill=prefill, storage=storage, spans=spans)
        # A policy that evicts at every token holds as many rows however many it reads.
        self.capacity = None if policy.every is not None else capacity
        self._builds_mask = False

    @property
    def left(self) -> int | None:
        """How many more tokens can be decoded before the next prompt; None: any number.

        Waits for the device. Before the first prompt it is the capacity.
        """
        if self.capacity is None:
            return None
        steps = [layer.memory.step for layer in self._static_layers]
        return min(self.capacity if step is None else step.left for step in steps)

    def check_room(self, new: int, decoded: int) -> None:
        """Raise InvalidValueError if `decoded` tokens behind `new` ones may not fit.

        The token that is decoded last is not read. A prompt of several tokens makes room anew.
        """
        read, left = (decoded - 1, self.capacity) if new > 1 else (decoded - 1 + new, self.left)
        if left is not None and read > left:
            raise InvalidValueError(
                f"generate may decode {decoded} tokens, of which the cache reads {read}, but there "
                f"is room for {left} (capacity={self.capacity}). Make the cache with a larger "
                "capacity, or give generate a smaller max_new_tokens. Nothing was changed."
            )

    @property
    def _static_layers(self) -> list[StaticPolicyLayer]:
        return cast("list[StaticPolicyLayer]", self.layers)

    def get_seq_length(self, layer_idx: int = 0) -> Any:
        """Return the tokens seen: a tensor on the device while steps can be captured."""
        step = self._static_layers[layer_idx].memory.step
        return super().get_seq_length(layer_idx) if step is None else step.count.seen

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Return the sizes for the layer that holds the most; steps do not change them."""
        memory = self._static_layers[layer_idx].memory
        if query_length > 1 or memory.step is None:
            return super().get_mask_sizes(query_length, layer_idx)
        if not torch.compiler.is_compiling():
            self._builds_mask = True
            self.session.masks.expect_step(self._check_given)
        steps = [layer.memory.step for layer in self._static_layers]
        return max([step.width for step in steps]), memory.base - max([step.held for step in steps])

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Add the new tokens of one layer: of a prompt, or of a step."""
        memory = self._static_layers[layer_idx].memory
        step = memory.step
        if step is None or key_states.shape[2] > 1:
            return super().update(key_states, value_states, layer_idx, *args, **kwargs)
        if not self.is_observed:
            raise CacheStateError(CLOSED)
        if layer_idx == 0 and not torch.compiler.is_compiling():
            self._check_mask()
        if torch.is_grad_enabled() and key_states.requires_grad:
            raise InvalidValueError(NO_GRADIENTS)
        if not torch.compiler.is_compiling():
            memory.check_new(key_states, value_states)
            if key_states.device.type == "cpu":
                self._check_left(step)
        return handed_out(step, key_states, value_states)

    def _check_given(self, mask: Tensor) -> None:
        """Refuse a 2D mask that contradicts how earlier tokens were read. Waits for the device."""
        layer = self._static_layers[0]
        seen, slots = layer.seen, layer.memory.step.slots_now
        check_given_mask(mask, slots.seen, seen, slots.read(seen))
        self.session.masks.saw_step()

    def _check_mask(self) -> None:
        """Refuse a step whose mask nobody built for the static rows."""
        if not self._builds_mask:
            raise InvalidValueError(READY_MASK)
        self._builds_mask = False

    def _check_left(self, step: Any) -> None:
        """Refuse a token for which there is no room; a captured step gives NaN for it."""
        if step.left == 0:
            raise InvalidValueError(
                f"this cache has decoded capacity={self.capacity} tokens behind its last prompt, "
                "and there is no room for another one. Make a cache with a larger capacity. "
                "Nothing was changed."
            )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write all that is held to a file; `kvpolicy.load` goes on from it without static rows.

        Raises what `PolicyCache.save` raises.
        """
        with self._as_loaded():
            super().save(path)

    @contextmanager
    def _as_loaded(self) -> Iterator[None]:
        """Have layers hold contents like those of any other cache, until the block is left."""
        before = [layer.memory for layer in self._static_layers]
        try:
            for layer in self._static_layers:
                memory = layer.memory
                plain = StaticMemory(storage=memory.storage, base=layer.seen)
                plain.contents = memory.loaded()
                layer.memory = plain
            yield
        finally:
            for layer, memory in zip(self._static_layers, before, strict=True):
                layer.memory = memory
