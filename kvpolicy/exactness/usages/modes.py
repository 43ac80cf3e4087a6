"""Usages that are modes of a model or of `generate`: served exactly, or refused."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel, StaticCache

from kvpolicy import Policy
from kvpolicy.errors import KvpolicyError, UnsupportedModelError
from kvpolicy.exactness.usages.inputs import PROMPT, difference, generate, read, tokens
from kvpolicy.huggingface.cache_argument import handed

TURNS = (PROMPT, 1, 5)
STEPS = (1,) * 6


def compiled(model: PreTrainedModel, policy: Policy) -> float:
    """A conversation with `torch.compile(model)` against one with the model itself."""
    expected = read(model, policy.cache(model), TURNS)
    torch._dynamo.reset()
    # "eager" runs the captured graphs unchanged, so a difference is one of the capture.
    graphs: Any = torch.compile(model, backend="eager")
    found = _offered(model, lambda cache: read(graphs, cache, TURNS), policy)
    return difference(found, expected)


def static_cache(model: PreTrainedModel, policy: Policy) -> float:
    """Compiled decode steps of a static cache against those of another cache of the policy."""
    with policy.cache(model) as plain:
        expected = read(model, plain, (PROMPT, *STEPS))
    capacity = len(STEPS) if policy.every is None else None

    def use(cache: Any) -> list[Tensor]:
        prompt = read(model, cache, (PROMPT,))
        torch._dynamo.reset()
        step: Any = torch.compile(model, backend="eager", fullgraph=True)
        return prompt + read(step, cache, STEPS, first_seed=1)

    static = policy.cache(model, static=True, capacity=capacity)
    theirs = StaticCache(config=model.config, max_cache_len=PROMPT + len(STEPS))
    return difference(_served(lambda: use(static), lambda: use(theirs)), expected)


def output_attentions(model: Any, policy: Policy) -> float:
    """Attention weights against those without a cache; logits against those of plain calls."""

    def ask(cache: Any) -> Any:
        return model(
            input_ids=tokens(0), **handed(cache, to=model), output_attentions=True
        ).attentions

    given = _offered(model, ask, policy)
    plain = model(input_ids=tokens(0), output_attentions=True, use_cache=False).attentions
    pairs = [
        (ours, theirs)
        for ours, theirs in zip(given or (), plain or (), strict=True)
        if isinstance(theirs, Tensor)
    ]
    with_weights, plain_calls = policy.cache(model), policy.cache(model)
    logits = [
        model(
            input_ids=tokens(turn, length), **handed(with_weights, to=model), output_attentions=True
        ).logits
        for turn, length in enumerate(TURNS)
    ]
    pairs += zip(logits, read(model, plain_calls, TURNS), strict=True)
    return difference(*map(list, zip(*pairs, strict=True)))


def assisted_decoding(model: PreTrainedModel, policy: Policy) -> float:
    """Decoding with a draft model: how many tokens differ from greedy decoding."""
    return _tokens_changed(model, policy, assistant_model=deepcopy(model))


def prompt_lookup(model: PreTrainedModel, policy: Policy) -> float:
    """Decoding with drafts copied from the prompt: how many tokens differ from greedy decoding."""
    return _tokens_changed(model, policy, prompt_lookup_num_tokens=3)


def _tokens_changed(model: PreTrainedModel, policy: Policy, **drafts: Any) -> float:
    ids = tokens(1, PROMPT // 2).repeat(1, 2)
    options = drafts | {"eos_token_id": 1}
    found = _offered(model, lambda cache: generate(model, cache, ids, **options), policy)
    expected = generate(model, policy.cache(model), ids, eos_token_id=1)
    if found.shape != expected.shape:
        return float("inf")
    return float((found != expected).sum())


def _offered(model: PreTrainedModel, use: Callable[[Any], Any], policy: Policy) -> Any:
    """Use a policy's cache.

    Raises UnsupportedModelError if transformers cannot use its own cache in this way either.
    """
    return _served(lambda: use(policy.cache(model)), lambda: use(_plain_cache(model)))


def _served(with_ours: Callable[[], Any], with_theirs: Callable[[], Any]) -> Any:
    try:
        return with_ours()
    except Exception as ours:
        try:
            with_theirs()
        except KvpolicyError:
            # What we refuse of both caches, transformers does not refuse.
            raise ours from None
        except Exception as theirs:  # noqa: BLE001 - whatever transformers raises is passed on
            reason = str(theirs).strip().partition("\n")[0]
            raise UnsupportedModelError(
                f"transformers refuses it of its own cache: {type(theirs).__name__}: {reason}"
            ) from ours
        raise


def _plain_cache(model: PreTrainedModel) -> Cache:
    return DynamicCache(config=model.config)
