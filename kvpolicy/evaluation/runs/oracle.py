"""The oracle of a prompt: a policy that knows what the full cache would be asked after it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from kvpolicy.budget import Budget
from kvpolicy.composition import compose
from kvpolicy.errors import InvalidValueError
from kvpolicy.evaluation.caches import opened_cache
from kvpolicy.evaluation.recording import record
from kvpolicy.evaluation.runs.answer import answers
from kvpolicy.evaluation.runs.asks import HELD_BACK, Asked
from kvpolicy.evaluation.runs.prompt import Prompt
from kvpolicy.evaluation.runs.reading import Reading, ends_of, held_back
from kvpolicy.task import Metric, Sample

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from kvpolicy.policy import Policy


def foreseen(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[tuple[Prompt, Sample]],
    metric: Metric,
    budget: Budget,
) -> Iterator[dict[str, Any] | Exception]:
    """Yield what `answers` does, each question with the oracle for it: none share a cache."""
    for question in questions:
        try:
            policy = oracle(model, Asked(tokenizer, *question, metric), budget)
        except Exception as error:  # noqa: BLE001 - a prompt without an oracle is a row's error
            yield error
        else:
            yield from answers(model, tokenizer, [question], metric, policy)


def oracle(model: PreTrainedModel, asked: Asked, budget: Budget) -> Policy:
    """Return the policy that keeps the positions whose eviction would change what follows most.

    What follows is the question, if it is asked outside, and what the full cache then writes by
    greedy decoding. The prompt is read twice for that.

    Raises InvalidValueError for a text that is read bit by bit, which has no end to look beyond.
    """
    if asked.metric.asks not in ("text", *HELD_BACK):
        raise InvalidValueError(
            f"there is no oracle for metric {asked.metric.name!r}: it knows what follows a prompt, "
            "and this text is evicted many times while it is read."
        )
    prompt = held_back(asked.prompt) if asked.metric.asks in HELD_BACK else asked.prompt
    limit, ends = asked.sample.max_new_tokens or 1, ends_of(model, asked.tokenizer)
    with torch.inference_mode(), opened_cache(model, None) as cache:
        written, _ = Reading(model, cache).follow(prompt, None, limit=limit, ends=ends)
    follows = torch.cat([prompt.question, torch.tensor([written])], dim=1)
    future = record(model, prompt.context.to(model.device), follows.to(model.device))
    return compose(scorer={"name": "oracle", "future": future}, recent=0, budget=budget)
