"""Records each forward through a cache, and what is done to the cache between two forwards."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import attrs
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from kvpolicy.huggingface.cache import PolicyCache
from kvpolicy.huggingface.cache_argument import cache_in, name_for, renamed

Change = Callable[[Any], None]
"""Does to a cache what was done to another one: reorders its rows, or takes tokens back."""
CHANGES = ("crop", "reorder_cache", "batch_repeat_interleave", "batch_select_indices")
"""The methods of a cache that are recorded. `reset` is not: it begins anew."""


@attrs.frozen(kw_only=True, eq=False)
class Forward:
    """One forward: its arguments, what each layer held before it, and the logits it returned."""

    arguments: dict[str, Any]
    positions: list[Int[Tensor, "B N K"]]
    """By layer, in the order of `cache.positions`; -1 where a head holds less than others."""
    seen: int
    logits: Float[Tensor, "B Q V"]
    changes: list[Change]
    """What was done to the cache since the forward before this one."""

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


def columns_of(positions: Int[Tensor, "B N K"], real: Bool[Tensor, "B T"]) -> Int[Tensor, "B N K"]:
    """Return the column of each position, wherever padding stands: p is the p-th real token."""
    order = (~real).int().argsort(dim=1, stable=True)[:, None]
    return order.expand(-1, positions.shape[1], -1).gather(2, positions.clamp(min=0))


def held_before(forward: Forward, layer: int, heads: int) -> Bool[Tensor, "B N T"]:
    """Return which of the tokens seen before a forward each head of a layer held."""
    real = forward.real
    held = torch.zeros((real.shape[0], heads, forward.seen + 1), dtype=torch.bool)
    if forward.seen:
        # Latents have one head, and what is made of them has all.
        positions = forward.positions[layer].expand(-1, heads, -1)
        column = columns_of(positions, real)
        held.scatter_(2, column.masked_fill(positions < 0, forward.seen), True)
    return held[:, :, : forward.seen]


@contextmanager
def recorded(model: PreTrainedModel, cache: PolicyCache) -> Iterator[list[Forward]]:
    """Record each forward of `model` through `cache`, and each change to the cache between."""
    forwards: list[Forward] = []
    before: list[Any] = []
    changes: list[Change] = []
    signature, own_name = inspect.signature(model.forward), name_for(model)

    def given(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        bound = dict(signature.bind(*args, **renamed(kwargs, own_name)).arguments)
        more: dict[str, Any] = bound.pop("kwargs", {})
        return bound | more

    def enter(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if cache_in(given(args, kwargs)) is cache:
            before.append(([held.clone() for held in cache.positions], cache.seen))

    def leave(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        arguments = given(args, kwargs)
        if cache_in(arguments) is cache:
            positions, seen = before.pop()
            forwards.append(
                Forward(
                    arguments=arguments,
                    positions=positions,
                    seen=seen,
                    logits=output.logits.detach().clone(),
                    changes=changes[:],
                )
            )
            changes.clear()

    hooks = [
        model.register_forward_pre_hook(enter, with_kwargs=True),
        model.register_forward_hook(leave, with_kwargs=True),
    ]
    for name in CHANGES:
        setattr(cache, name, _recording(getattr(cache, name), name, changes))
    try:
        yield forwards
    finally:
        for hook in hooks:
            hook.remove()
        for name in CHANGES:
            delattr(cache, name)


def _recording(method: Callable[..., Any], name: str, changes: list[Change]) -> Any:
    """Return a cache's method that also notes the call, for the full cache of the replay."""

    def change(*args: Any) -> None:
        method(*args)
        changes.append(lambda full: getattr(full, name)(*args))

    return change
