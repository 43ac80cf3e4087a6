"""What an entrant says to the questions on one context, its scores, and what its cache held."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch

from kvpolicy.errors import InvalidValueError
from kvpolicy.evaluation.caches import opened_cache
from kvpolicy.evaluation.runs.asks import ASKS, Asked
from kvpolicy.evaluation.runs.entrant import suited
from kvpolicy.evaluation.runs.prompt import Prompt
from kvpolicy.evaluation.runs.reading import Reading
from kvpolicy.huggingface.model.config import decoder_config
from kvpolicy.task import Metric, Sample

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from kvpolicy.policy import Policy


def answered(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: Prompt,
    sample: Sample,
    metric: Metric,
    policy: Policy | None,
) -> dict[str, Any]:
    """Return the fields of a row that a run decides; None as policy is the full cache.

    Raises InvalidValueError for a prompt that is too long for the model, and for a sample that
    lacks what the metric needs; and whatever the policy or the metric raises.
    """
    [found] = answers(model, tokenizer, [(prompt, sample)], metric, policy)
    if isinstance(found, Exception):
        raise found
    return found


def answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[tuple[Prompt, Sample]],
    metric: Metric,
    policy: Policy | None,
) -> Iterator[dict[str, Any] | Exception]:
    """Yield for each question what `answered` returns or raises.

    The prompts have the same context. It is read once; each of several questions is asked of a copy
    of the cache.
    """
    policy = suited(policy, metric)
    with ExitStack() as opened:
        context = _Context(model, policy, opened, several=len(questions) > 1)
        for prompt, sample in questions:
            found: dict[str, Any] | Exception
            try:
                with torch.inference_mode():
                    found = context.answer(Asked(tokenizer, prompt, sample, metric))
            except Exception as error:  # noqa: BLE001 - one question that fails is a row's error
                found = error
            yield found


class _Context:
    """One entrant's cache of a context.

    Where there are several questions, the context is read when the first is asked, and its cache is
    closed with `opened`.
    """

    def __init__(
        self, model: PreTrainedModel, policy: Policy | None, opened: ExitStack, *, several: bool
    ) -> None:
        self.model, self.policy, self.opened, self.several = model, policy, opened, several
        self.begun: Reading | None = None
        self.full: Reading | None = None
        self.peak = 0

    def answer(self, asked: Asked) -> dict[str, Any]:
        """Return the fields of a row that a run decides."""
        check_length(self.model, asked.prompt, asked.sample)
        with self._reading(asked) as reading:
            found = ASKS[asked.metric.asks](reading, asked._replace(full=self.full))
            return {
                "tokens": asked.prompt.tokens,
                **found,
                "positions": reading.positions,
                "nbytes": reading.report().nbytes,
                "peak_nbytes": self._peak_since_reset(),
                "footprint": reading.footprint,
                "full_footprint": reading.full_footprint,
                "first_seconds": reading.first,
                "token_seconds": sum(reading.steps) / len(reading.steps) if reading.steps else None,
            }

    @contextmanager
    def _reading(self, asked: Asked) -> Iterator[Reading]:
        if not self.several:
            self._reset_peak()
            with opened_cache(self.model, self.policy) as cache:
                yield Reading(self.model, cache)
            return
        if self.begun is None:
            self._reset_peak()
            if asked.metric.asks == "agreement":
                self.full = self._begin(asked.prompt, None)
            self.begun = self._begin(asked.prompt, self.policy)
            self.peak = self._peak_since_reset() or 0
        self._reset_peak()
        with self.begun.branched() as reading:
            yield reading

    def _begin(self, prompt: Prompt, policy: Policy | None) -> Reading:
        with ExitStack() as opening:
            cache = opening.enter_context(opened_cache(self.model, policy))
            reading = Reading(self.model, cache)
            reading.begin(prompt.context)
            self.opened.push(opening.pop_all())
        return reading

    def _reset_peak(self) -> None:
        if self.model.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.model.device)

    def _peak_since_reset(self) -> int | None:
        if self.model.device.type != "cuda":
            return None
        return max(self.peak, torch.cuda.max_memory_allocated(self.model.device))


def check_length(model: PreTrainedModel, prompt: Prompt, sample: Sample) -> None:
    """Raise InvalidValueError for a prompt that is too long for the model."""
    longest = getattr(decoder_config(model), "max_position_embeddings", None)
    if longest is not None and prompt.tokens > longest:
        raise InvalidValueError(
            f"the prompt of sample {sample.name!r} has {prompt.tokens:,} tokens, but the model "
            f"reads at most {longest:,}. Cut prompts in the middle with --max-prompt-tokens "
            "(max_prompt_tokens=...), or choose a model for longer texts."
        )
