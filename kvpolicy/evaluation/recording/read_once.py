"""Prompts that a model reads once, and that are then shown to the caches of many policies.

Until a prompt ends, nothing of it is evicted. So queries, keys and values are those of the full
cache, whatever the policy, and each policy decides by them what it keeps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from kvpolicy.evaluation.caches import opened_cache
from kvpolicy.huggingface.cache_argument import handed

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel

    from kvpolicy.huggingface.cache import PolicyCache


class _Call(NamedTuple):
    """What one attention call of the prompt was given."""

    module: nn.Module
    query: Float[Tensor, "B H S D"]
    key: Float[Tensor, "B N S D"]
    value: Float[Tensor, "B N S Dv"]
    mask: Any
    options: dict[str, Any]


class ReadOnce:
    """Reads prompts into empty caches. The last prompt that it read is not read again.

    It holds the queries, keys and values of that prompt. Layers that are not plain attention over
    all tokens are read by the model for each cache: windows, linear states, shared or latent keys.
    So are the prompts of policies that have the model read them a second time.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        """Know no prompt yet."""
        self.model = model
        self._ids: Int[Tensor, "B S"] | None = None
        self._calls: list[_Call] = []
        self._positions: dict[nn.Module, Tensor] = {}
        self._logits: Float[Tensor, "B V"] | None = None

    def read(self, cache: Cache, ids: Int[Tensor, "B S"]) -> Float[Tensor, "B V"]:
        """Read a first prompt without padding, and return the logits behind it.

        Raises whatever the policy of the cache raises.
        """
        if not _takes(cache):
            return next_logits(self.model, cache, ids)
        if self._ids is None or not torch.equal(self._ids, ids):
            self._record(ids)
        if self._logits is None or len(self._calls) != len(cache.layers):
            return next_logits(self.model, cache, ids)
        self._show(cast("PolicyCache", cache))
        return self._logits

    def _record(self, ids: Int[Tensor, "B S"]) -> None:
        from kvpolicy.huggingface.attention.points import attention_points, wrapped
        from kvpolicy.huggingface.model.config import decoder_config

        self._ids, self._logits, self._calls, self._positions = None, None, [], {}
        calls, positions = self._calls, self._positions

        def noting(own: Any) -> Any:
            def attention(
                module: nn.Module,
                query: Tensor,
                key: Tensor,
                value: Tensor,
                mask: Any,
                **given: Any,
            ) -> Any:
                calls.append(_Call(module, query, key, value, mask, given))
                return own(module, query, key, value, mask, **given)

            return attention

        def rotated(module: nn.Module, args: tuple[Any, ...], given: dict[str, Any]) -> None:
            found = given.get("position_ids", args[1] if len(args) > 1 else None)
            if isinstance(found, Tensor):
                positions[module] = found

        hooks = [
            each.register_forward_pre_hook(rotated, with_kwargs=True)
            for each in self.model.modules()
            if "Rotary" in type(each).__name__
        ]
        points = attention_points(self.model.modules(), decoder_config(self.model))
        try:
            with opened_cache(self.model, None) as cache, wrapped(points, noting):
                self._logits = next_logits(self.model, cache, ids)
        finally:
            for hook in hooks:
                hook.remove()
        self._ids = ids

    def _show(self, cache: PolicyCache) -> None:
        """Let each layer of a cache see its attention call, without computing it."""
        from kvpolicy.huggingface.attention.call import observed
        from kvpolicy.huggingface.model.rotary_positions import note

        for module, positions in self._positions.items():
            note(module, positions)
        attention = observed(_nothing)
        for number, (module, query, key, value, mask, options) in enumerate(self._calls):
            # A cache may move rows within the tensors that it is given.
            keys, values = cache.update(key.clone(), value.clone(), number)
            attention(module, query, keys, values, mask, **options)


def next_logits(
    model: PreTrainedModel, cache: Cache, ids: Int[Tensor, "B Q"]
) -> Float[Tensor, "B V"]:
    """Read tokens in one forward, and return the logits behind the last."""
    output = model(input_ids=ids.to(model.device), logits_to_keep=1, **handed(cache, to=model))
    logits: Tensor = output.logits[:, -1].float()
    return logits


def _takes(cache: Cache) -> bool:
    """Whether a cache can be shown attention calls in place of being read into by the model."""
    from kvpolicy.huggingface.cache import PolicyCache
    from kvpolicy.huggingface.layer import PolicyLayer

    if type(cache) is not PolicyCache or cache.seen or cache.prefill is not None:
        return False
    session = cache.session
    return (
        all(type(layer) is PolicyLayer for layer in cache.layers)
        and all(len(readers) == 1 for readers in session.readers)
        and not session.is_latent
        and session.bias_extent is None
        and session.second_pass is None
    )


def _nothing(*args: Any, **options: Any) -> tuple[None, None]:
    return None, None
