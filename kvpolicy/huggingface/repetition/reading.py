"""Read a prompt twice: once into a cache, and once more behind it before the cache evicts."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers import Cache

from kvpolicy.cache.eviction.repetition import rows_to_repeat
from kvpolicy.errors import UnsupportedModelError
from kvpolicy.huggingface.cache_argument import cache_in, handed
from kvpolicy.huggingface.model.rotary_positions import not_noted
from kvpolicy.huggingface.repetition.layer import Passage, RepeatingLayer
from kvpolicy.huggingface.repetition.residual import residual_norms
from kvpolicy.huggingface.repetition.second_pass import SecondPass
from kvpolicy.huggingface.taking_back import taking_back
from kvpolicy.pipeline.doubts import collected


def reading_twice(is_ours: Callable[[object], bool], own: Callable[..., Any]) -> Callable[..., Any]:
    """Return a decoder's `forward` that repeats a prompt, where a cache of ours asks for that."""

    @functools.wraps(own)
    def forward(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        # A compiled forward is told no ids, so that its first layer refuses it.
        cache = None if torch.compiler.is_compiling() else cache_in(kwargs)
        if cache is None or not is_ours(cache) or cache.session.second_pass is None:
            return own(module, *args, **kwargs)
        return _read_twice(own, module, cache, cache.session.second_pass, args, kwargs)

    return forward


def _read_twice(
    own: Callable[..., Any],
    module: nn.Module,
    cache: Any,
    second_pass: SecondPass,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    ids = kwargs.get("input_ids", args[0] if args else None)
    if not isinstance(ids, Tensor) or ids.dim() != 2:
        raise UnsupportedModelError(second_pass.refusal)
    places = kwargs.get("position_ids")
    if places is not None and places.dim() != 2:
        raise UnsupportedModelError(
            "prompts are repeated at the positions behind them, but this one has position_ids of "
            f"{places.dim()} dimensions, as images and video have. Use another recipe, such as "
            "'snapkv'."
        )
    undo = [taking_back(layer) for layer in cache.policy_layers]
    evicts = False
    try:
        with second_pass.reading(ids):
            result = own(module, *args, **kwargs)
        if second_pass.waiting:
            _repeat(module, cache, second_pass, places)
            evicts = True
            undo.clear()
            second_pass.finish()
    except BaseException as error:
        if evicts:
            cache.session.failed(error, unchanged=False)
        elif second_pass.waiting:
            # Layers that wait have not evicted, whatever went wrong.
            for take_back in undo:
                take_back()
        second_pass.clear()
        raise
    return result


def _behind(
    places: Int[Tensor, "#B Q"] | None, seen: int, batch: int, device: torch.device
) -> Int[Tensor, "B 1"]:
    """Return the rotary position behind the last token of each row."""
    if places is None:
        return torch.full((batch, 1), seen, dtype=torch.long, device=device)
    return (places[:, -1:] + 1).expand(batch, 1)


@torch.no_grad()
def _repeat(
    decoder: nn.Module, cache: Any, second_pass: SecondPass, given: Int[Tensor, "#B Q"] | None
) -> None:
    """Let the model repeat what it has not repeated yet, in rows that evict.

    `given` are the rotary positions of the new tokens, where the model was given some.
    """
    session, schedule, waiting = cache.session, cache.policy_layers[0].schedule, second_pass.waiting
    repetition, slots = second_pass.repetition, waiting[0].contents.slots
    places = _behind(given, cache.seen, cache.batch_size, schedule.ids.device)
    known = schedule.ids >= 0
    counts: list[int] = known.sum(1).tolist()
    groups = rows_to_repeat(session.policy, [each.contents for each in waiting], counts)
    modules = [each.module for each in waiting] if repetition.residual else []
    norms = residual_norms(decoder, modules)
    with norms as residual, not_noted(), collected(session.guard.doubts):
        for rows in groups:
            count = counts[rows.start]
            text = schedule.ids[rows][known[rows]].view(-1, count).long()
            begins = slots.seen[rows.start] == count
            for chunk in repetition.chunks(text, begins=begins):
                passage = Passage(
                    session=session, rows=rows, count=count, chunk=chunk, residual=residual
                )
                layers: list[Any] = [
                    RepeatingLayer(passage, at, each.contents) for at, each in enumerate(waiting)
                ]
                new = torch.arange(chunk.ids.shape[1], device=places.device)
                reader = handed(Cache(layers=layers), to=decoder)
                decoder(
                    input_ids=chunk.ids, position_ids=places[rows] + new, use_cache=True, **reader
                )
    done = [row for rows in groups for row in range(rows.start, rows.stop)]
    schedule.forget_repeated(torch.tensor(done, device="cpu"))
