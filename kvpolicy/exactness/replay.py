"""The yardstick: a full cache in which the evicted entries are masked at their true positions.

Every forward through a `PolicyCache` is recorded with the positions that each layer held, and
replayed on the same model with transformers' full `DynamicCache` and an attention that sees only
those positions. Nothing of kvpolicy's storage, masks or observation takes part in the replay.
Where a policy renumbers slots, the replay turns each full key by an angle of its own reckoning.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import attrs
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache, PreTrainedModel
from transformers.masking_utils import eager_mask

from kvpolicy.huggingface.cache import PolicyCache
from kvpolicy.huggingface.model.config import decoder_config

_NAME = "kvpolicy-masked-full-cache"
CHANGES = ("crop", "reorder_cache", "batch_repeat_interleave", "batch_select_indices")
"""What may be done to a cache between forwards, beside `reset`, which begins anew."""


@attrs.frozen(kw_only=True, eq=False)
class Call:
    """One forward: its arguments, what each layer held before it, and the logits it gave."""

    arguments: dict[str, Any]
    positions: list[Int[Tensor, "B N K"]]
    seen: int
    logits: Float[Tensor, "B Q V"]
    before: list[Callable[[Any], None]]
    """What was done to the cache since the forward before: rows reordered, tokens taken back."""

    @property
    def length(self) -> int:
        """Q, the number of new tokens."""
        tokens: Tensor = self.arguments["input_ids"]
        return tokens.shape[1]

    @property
    def real(self) -> Bool[Tensor, "B T"]:
        """Which of all tokens so far are not padding."""
        mask = self.arguments.get("attention_mask")
        if mask is None:
            batch = self.logits.shape[0]
            return torch.ones((batch, self.seen + self.length), dtype=torch.bool)
        return torch.as_tensor(mask).bool()


@contextmanager
def recorded(model: PreTrainedModel, cache: PolicyCache) -> Iterator[list[Call]]:
    """Collect every forward of `model` through `cache`, and what is done to the cache between."""
    calls: list[Call] = []
    before: list[Any] = []
    changes: list[Callable[[Any], None]] = []
    signature = inspect.signature(model.forward)

    def given(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        bound = dict(signature.bind(*args, **kwargs).arguments)
        more: dict[str, Any] = bound.pop("kwargs", {})
        return bound | more

    def enter(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if given(args, kwargs).get("past_key_values") is cache:
            before.append(([held.clone() for held in cache.positions], cache.get_seq_length()))

    def leave(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        arguments = given(args, kwargs)
        if arguments.get("past_key_values") is cache:
            positions, seen = before.pop()
            calls.append(
                Call(
                    arguments=arguments,
                    positions=positions,
                    seen=seen,
                    logits=output.logits.detach().clone(),
                    before=changes[:],
                )
            )
            changes.clear()

    hooks = [
        model.register_forward_pre_hook(enter, with_kwargs=True),
        model.register_forward_hook(leave, with_kwargs=True),
    ]
    for name in CHANGES:
        setattr(cache, name, _noting(getattr(cache, name), name, changes))
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()
        for name in CHANGES:
            delattr(cache, name)


def _noting(method: Callable[..., Any], name: str, changes: list[Callable[[Any], None]]) -> Any:
    """Return a method of a cache that is also done to the full cache of the replay."""

    def change(*args: Any) -> None:
        method(*args)
        changes.append(lambda full: getattr(full, name)(*args))

    return change


def max_logit_difference(model: PreTrainedModel, calls: list[Call], cache: PolicyCache) -> float:
    """Replay `calls` with a masked full cache; return the largest difference at any real token.

    NaN if a logit is not finite. Raises ValueError if `calls` is empty, or if nothing was evicted
    in them: then there would be nothing to compare.
    """
    evicting = _evicting(cache)
    if not any(_has_evicted(call, evicting) for call in calls):
        raise ValueError(f"{len(calls)} forwards were recorded, and nothing was evicted in them")
    return replay_difference(model, calls, cache)


def replay_difference(model: PreTrainedModel, calls: list[Call], cache: PolicyCache) -> float:
    """Replay `calls` as `max_logit_difference` does, even if nothing was evicted in them."""
    config = decoder_config(model)
    evicting = _evicting(cache)
    turns = _slot_frequencies(model) if cache.policy.slot_positions else None
    full, found, worst = _FullCache(config=config), config._attn_implementation, 0.0
    AttentionMaskInterface.register(_NAME, eager_mask)
    try:
        for call in calls:
            for change in call.before:
                change(full)
            AttentionInterface.register(_NAME, _masked_attention(call, full, evicting, turns))
            config._attn_implementation = {"": _NAME}
            with torch.no_grad():
                logits = model(**call.arguments | {"past_key_values": full}).logits
            real = call.real[:, -logits.shape[1] :]
            difference = (logits - call.logits).abs().amax(-1)[real]
            worst = float(torch.tensor([worst, float(difference.max())]).max())
    finally:
        config._attn_implementation = {"": found}
    return worst


def _has_evicted(call: Call, evicting: set[int]) -> bool:
    """Whether a head lacks a position that its row has seen."""
    read = call.real[:, : call.seen].sum(1, keepdim=True)
    return any(
        bool(((call.positions[layer] >= 0).sum(-1) < read).any())
        for layer in (evicting if call.seen else ())
    )


def _evicting(cache: PolicyCache) -> set[int]:
    return {index for index, layer in enumerate(cache.layers) if layer in cache.policy_layers}


class _FullCache(DynamicCache):
    """Remembers which of its layers was updated last: attention follows at once.

    A module that runs more than once in a forward has a layer of the cache for each time.
    """

    last_updated = -1

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        self.last_updated = layer_idx
        found: tuple[Tensor, Tensor] = super().update(
            key_states, value_states, layer_idx, *args, **kwargs
        )
        return found

    def batch_repeat_interleave(self, repeats: int) -> None:
        updated: Any = self.layers[self.last_updated]
        rows: Any = torch.arange(len(updated.keys)).repeat_interleave(repeats)
        self.reorder_cache(rows)

    def batch_select_indices(self, indices: Any) -> None:
        self.reorder_cache(indices)


def _masked_attention(
    call: Call, full: _FullCache, evicting: set[int], turns: Float[Tensor, " pairs"] | None
) -> Callable[..., Any]:
    """Attend to what the call's layers held; other layers attend as they always do."""

    def attention(
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        layer = full.last_updated
        if layer not in evicting:
            eager = sys.modules[type(module).__module__].__dict__["eager_attention_forward"]
            own: tuple[Tensor, Tensor | None] = eager(
                module, query, key, value, attention_mask, **kwargs
            )
            return own
        if turns is not None:
            key = _at_their_slots(key, call, layer, turns)
        groups = query.shape[1] // key.shape[1]
        allowed = _allowed(call, layer, key.shape[1]).repeat_interleave(groups, 1)
        key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
        scaling = kwargs.get("scaling")
        logits = query @ key.mT * (query.shape[-1] ** -0.5 if scaling is None else scaling)
        if (softcap := kwargs.get("softcap")) is not None:
            logits = softcap * torch.tanh(logits / softcap)
        # A padding query may see nothing; what it gives is never compared, but must not be NaN.
        allowed = allowed | ~allowed.any(-1, keepdim=True)
        logits = logits.masked_fill(~allowed, -torch.inf)
        # As transformers' own eager attention does it in half precision.
        weights = logits.softmax(-1, dtype=torch.float32).to(logits.dtype)
        if (sinks := kwargs.get("s_aux")) is not None:
            # What the sink leaves: Z / (Z + exp(sink)), of the sum Z of a row's exponentials.
            weights = weights * (logits.logsumexp(-1) - sinks[:, None]).sigmoid()[..., None]
        return (weights @ value).transpose(1, 2).contiguous(), None

    return attention


def _allowed(call: Call, layer: int, heads: int) -> Bool[Tensor, "B N Q T"]:
    """Return which tokens each new token sees: those held, and the new ones up to itself."""
    real = call.real
    batch, total = real.shape
    held = torch.zeros((batch, heads, call.seen + 1), dtype=torch.bool)
    if call.seen:
        positions = call.positions[layer]
        padding = total - real.sum(1)
        column = positions + padding[:, None, None]
        held.scatter_(2, column.masked_fill(positions < 0, call.seen), True)
    new = torch.ones((call.length, call.length), dtype=torch.bool).tril()
    new = new & real[:, None, None, call.seen :]
    old = held[:, :, None, : call.seen].expand(-1, -1, call.length, -1)
    return torch.cat([old, new.expand(-1, heads, -1, -1)], -1)


def _slot_frequencies(model: PreTrainedModel) -> Float[Tensor, " pairs"]:
    """Return the angle per position of each pair of channels, for models that turn half by half.

    Raises ValueError for a model that is not known to do so.
    """
    rotary = getattr(model.base_model, "rotary_emb", None)
    if not type(model).__name__.startswith(("Llama", "Mistral", "Qwen")) or rotary is None:
        raise ValueError(f"the yardstick does not know how {type(model).__name__} rotates its keys")
    frequencies: Tensor = rotary.inv_freq
    return frequencies.float()


def _at_their_slots(
    key: Float[Tensor, "B N T D"], call: Call, layer: int, turns: Float[Tensor, " pairs"]
) -> Float[Tensor, "B N T D"]:
    """Turn the keys held before this call to stand without gaps before its new tokens."""
    if not call.seen:
        return key
    positions, padding = call.positions[layer], (~call.real).sum(1)[:, None, None]
    held = (positions >= 0).sum(-1, keepdim=True)
    slots = call.seen - padding - held + torch.arange(positions.shape[-1])
    column = (positions + padding).masked_fill(positions < 0, call.seen)
    # Each angle rounds to float32, as in a model's tables: the further on, the more.
    angles = torch.zeros((*key.shape[:2], key.shape[2], len(turns)), dtype=torch.float64)
    for places, sign in ((slots, 1), (positions, -1)):
        of_token = torch.zeros((*key.shape[:2], key.shape[2] + 1))
        of_token.scatter_(2, column, places.masked_fill(positions < 0, 0).float())
        angles += sign * (of_token[..., :-1, None] * turns).double()
    first, second = key.double().chunk(2, -1)
    turned = torch.complex(first, second) * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([turned.real, turned.imag], -1).to(key.dtype)
