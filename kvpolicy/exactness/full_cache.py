"""A full cache, and an attention over it that sees only what another cache held."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformers import DynamicCache

from kvpolicy.exactness.averages import average_of_evicted, precise
from kvpolicy.exactness.forwards import Forward, held_before
from kvpolicy.exactness.slot_rotation import at_their_slots


class FullCache(DynamicCache):
    """Remembers which layer was updated last: the attention of that layer follows at once.

    A module that runs several times in a forward has a layer of the cache for each run, so its
    own index does not say which layer it attends to. Layers that share keys are given those that
    another layer got, in the same tensor.
    """

    last_updated = -1

    def layer_of(self, key: Tensor) -> int:
        """Return the layer that handed out these keys: the last one, if not another did."""
        own = (layer for layer, each in self._handed_out().items() if each is key)
        return next(own, self.last_updated)

    def _handed_out(self) -> dict[int, Tensor]:
        found: dict[int, Tensor] = self.__dict__.setdefault("handed_out", {})
        return found

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Store the new rows, and note the layer."""
        self.last_updated = layer_idx
        found: tuple[Tensor, Tensor] = super().update(
            key_states, value_states, layer_idx, *args, **kwargs
        )
        self._handed_out()[layer_idx] = found[0]
        return found

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row of the batch."""
        updated: Any = self.layers[self.last_updated]
        rows: Any = torch.arange(len(updated.keys)).repeat_interleave(repeats)
        self.reorder_cache(rows)

    def batch_select_indices(self, indices: Any) -> None:
        """Keep these rows of the batch, in this order."""
        self.reorder_cache(indices)


def masked_attention(
    forward: Forward,
    full: FullCache,
    evicting: set[int],
    frequencies: Float[Tensor, " pairs"] | None,
    *,
    averages: bool = False,
) -> Callable[..., Any]:
    """Return an attention that sees what the layers held before `forward`, and its new tokens.

    Layers that are not `evicting` use the model's own eager attention. `frequencies` are those of
    the model's rotary embedding if the policy renumbers slots; None if it does not. With
    `averages`, the mean of what each head has evicted is one more key and value, with log(count)
    added to its logit.
    """

    def attention(
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        layer = full.layer_of(key)
        if layer not in evicting:
            eager = sys.modules[type(module).__module__].__dict__["eager_attention_forward"]
            own: tuple[Tensor, Tensor | None] = eager(
                module, query, key, value, attention_mask, **kwargs
            )
            return own
        if frequencies is not None:
            key = at_their_slots(key, forward, layer, frequencies)
        groups = query.shape[1] // key.shape[1]
        average = average_of_evicted(key, value, forward, layer) if averages else None
        # Layers that share keys may compute the last tokens only.
        seen = _seen(forward, layer, key.shape[1])[:, :, -query.shape[2] :]
        if attention_mask is not None:
            seen = _as_the_model_says(seen, attention_mask, forward.seen)
        seen = seen.repeat_interleave(groups, 1)
        key, value = (each.repeat_interleave(groups, dim=1) for each in (key, value))
        dim, dtype = query.shape[-1], query.dtype
        if average is not None:
            query, key, value = (precise(each) for each in (query, key, value))
            extra_key, extra_value, bias = (each.repeat_interleave(groups, 1) for each in average)
            key, value = torch.cat([key, extra_key], 2), torch.cat([value, extra_value], 2)
            seen = torch.cat([seen, (bias > -torch.inf).expand(*seen.shape[:3], 1)], -1)
            kwargs["extra_bias"] = bias
        weights = _softmax(query @ key.mT, seen, dim, **kwargs)
        return (weights @ value).to(dtype).transpose(1, 2).contiguous(), None

    return attention


def _softmax(
    products: Float[Tensor, "B H Q T"],
    seen: Bool[Tensor, "B H Q T"],
    dim: int,
    *,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Float[Tensor, " H"] | None = None,
    position_bias: Float[Tensor, "#B H Q T"] | None = None,
    extra_bias: Float[Tensor, "B H 1 1"] | None = None,
    **kwargs: Any,
) -> Float[Tensor, "B H Q T"]:
    """Scale, cap, mask and normalise, with what the model adds by distance and its learned sinks.

    `extra_bias` is added to the last column.
    `position_bias` and `s_aux` are transformers' names. The full cache holds all tokens, so the
    bias has a column for each of them.
    """
    logits = products * (dim**-0.5 if scaling is None else scaling)
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    if position_bias is not None:
        logits = logits + position_bias
    if extra_bias is not None:
        logits = torch.cat([logits[..., :-1], logits[..., -1:] + extra_bias], -1)
    # A padding query may see nothing. Its output is never compared, but must not be NaN.
    seen = seen | ~seen.any(-1, keepdim=True)
    logits = logits.masked_fill(~seen, -torch.inf)
    # In float32, as transformers' eager attention does it in half precision.
    weights = logits.softmax(-1, dtype=torch.float32).to(logits.dtype)
    if s_aux is not None:
        # With Z the sum of a row's exponentials, a sink leaves the share Z / (Z + exp(sink)).
        weights = weights * (logits.logsumexp(-1) - s_aux[:, None]).sigmoid()[..., None]
    return weights


def _seen(forward: Forward, layer: int, heads: int) -> Bool[Tensor, "B N Q T"]:
    """Return which tokens each new token sees: those held, and the new ones up to itself."""
    real, held = forward.real, held_before(forward, layer, heads)
    new = torch.ones((forward.length, forward.length), dtype=torch.bool).tril()
    new = new & real[:, None, None, forward.seen :]
    old = held[:, :, None].expand(-1, -1, forward.length, -1)
    return torch.cat([old, new.expand(-1, heads, -1, -1)], -1)


def _as_the_model_says(
    seen: Bool[Tensor, "B N Q T"], mask: Float[Tensor, "b h Q T"], older: int
) -> Bool[Tensor, "B N Q T"]:
    """Let new tokens see one another as the model's own mask says: images are seen whole."""
    new = mask[..., older:] > torch.finfo(mask.dtype).min / 2
    return torch.cat([seen[..., :older], new.expand(*seen.shape[:3], -1)], -1)
