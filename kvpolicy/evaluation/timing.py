"""Times decoding side by side: one token of every cache in turn, so that all share the weather."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING

import torch
from jaxtyping import Int
from torch import Tensor

from kvpolicy.evaluation.caches import opened_cache

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel

    from kvpolicy.policy import Policy

STEPS = 16


def decode_milliseconds(
    model: PreTrainedModel,
    ids: Int[Tensor, "B T"],
    policies: Sequence[Policy | None],
    *,
    steps: int = STEPS,
) -> list[float]:
    """Return the median time of one decoding step after the prompt `ids`, for each policy.

    None stands for the full cache. The steps alternate between the caches, and every token decoded
    is the same, so nothing but what a cache holds differs.
    """
    with ExitStack() as stack, torch.inference_mode():
        caches = [stack.enter_context(opened_cache(model, policy)) for policy in policies]
        for cache in caches:
            model(input_ids=ids, past_key_values=cache, logits_to_keep=1)
            _step(model, ids, cache)
        rounds = [[_step(model, ids, cache) for cache in caches] for _ in range(steps)]
    return [1000 * median(seconds) for seconds in zip(*rounds, strict=True)]


def _step(model: PreTrainedModel, ids: Int[Tensor, "B T"], cache: Cache) -> float:
    _wait(model)
    start = perf_counter()
    model(input_ids=ids[:, -1:], past_key_values=cache)
    _wait(model)
    return perf_counter() - start


def _wait(model: PreTrainedModel) -> None:
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
