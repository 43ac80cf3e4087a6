"""Usages of a cache with an image or sound in the prompt, against a masked full cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from kvpolicy import Policy
from kvpolicy.errors import UnsupportedModelError
from kvpolicy.exactness.media.prompts import Media, arguments, media_of
from kvpolicy.exactness.usages.inputs import PROMPT, generate, replayed, tokens
from kvpolicy.huggingface.cache import PolicyCache
from kvpolicy.huggingface.cache_argument import handed

BEFORE, BEHIND = 30, 30
"""Tokens of text before and behind the media."""


def prompt_with_media(model: PreTrainedModel, policy: Policy) -> float:
    """Answer a prompt with media by `generate`, and ask a second question about it."""
    media = media_of(model)

    def turns(cache: PolicyCache) -> None:
        answered = _generate(model, cache, media.prompt(1, BEFORE, BEHIND), media)
        generate(model, cache, torch.cat([answered, tokens(2, 7)], 1))

    return _offered(model, policy, turns)


def media_by_forward(model: Any, policy: Policy) -> float:
    """Read a prompt with media by forward, a decoded token, and a long second turn of text."""
    media = media_of(model)

    def turns(cache: PolicyCache) -> None:
        model(**arguments(model, media.prompt(1, BEFORE, BEHIND), media), **handed(cache, to=model))
        for seed, length in enumerate((1, 40, 1)):
            model(input_ids=tokens(5 + seed, length), **handed(cache, to=model))

    return _offered(model, policy, turns)


def media_in_the_second_turn(model: Any, policy: Policy) -> float:
    """Read a long turn of text, which is evicted, and then a turn with media."""
    media = media_of(model)

    def turns(cache: PolicyCache) -> None:
        model(input_ids=tokens(1, PROMPT), **handed(cache, to=model))
        model(**arguments(model, media.prompt(2, 9, 12), media), **handed(cache, to=model))
        model(input_ids=tokens(9, 1), **handed(cache, to=model))

    return _offered(model, policy, turns)


def padded_batch_with_media(model: PreTrainedModel, policy: Policy) -> float:
    """Answer two prompts with media in a left-padded batch; the first is 11 tokens shorter."""
    media = media_of(model)

    def turns(cache: PolicyCache) -> None:
        long = media.prompt(1, BEFORE, BEHIND)
        ids = long["input_ids"].repeat(2, 1)
        mask = torch.ones_like(ids)
        ids[0, :11], mask[0, :11] = 0, 0
        twice = {name: torch.cat([each, each]) for name, each in media.tensors.items()}
        prompt = {"input_ids": ids, "attention_mask": mask} | twice
        _generate(model, cache, prompt, media)

    return _offered(model, policy, turns)


def _generate(model: Any, cache: PolicyCache, prompt: dict[str, Tensor], media: Media) -> Tensor:
    given = arguments(model, prompt, media)
    found: Tensor = generate(model, cache, given.pop("input_ids"), **given)
    return found


def _offered(model: PreTrainedModel, policy: Policy, use: Callable[[Any], None]) -> float:
    """Use a policy's cache, and compare it with the full one.

    Raises UnsupportedModelError if transformers cannot use its own cache in this way either.
    """
    try:
        return replayed(model, policy, use)
    except Exception as ours:
        try:
            use(DynamicCache(config=model.config))
        except Exception as theirs:  # noqa: BLE001 - whatever transformers raises is passed on
            first = (str(theirs).strip().splitlines() or [""])[0]
            raise UnsupportedModelError(
                f"transformers refuses it of its own cache: {type(theirs).__name__}: {first}"
            ) from ours
        raise
