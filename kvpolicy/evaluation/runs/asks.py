"""What a model is asked for: to write, to choose, how likely a text is, whether it agrees."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import torch

from kvpolicy.errors import InvalidValueError
from kvpolicy.evaluation.caches import copied_cache, opened_cache
from kvpolicy.evaluation.measures.reconstruction import error_of_outputs
from kvpolicy.evaluation.recording.listening import outputs_heard
from kvpolicy.evaluation.runs.prompt import Prompt
from kvpolicy.evaluation.runs.reading import Reading, ends_of, held_back
from kvpolicy.task import Asks, Metric, Sample

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

STRETCHES = 32
"""Into how many stretches the losses of a text are put together at most."""


class Asked(NamedTuple):
    """A question to a model: the sample, its tokens, and how the answer is judged.

    `full` has read the context with the full cache, where several questions share it.
    """

    tokenizer: PreTrainedTokenizerBase
    prompt: Prompt
    sample: Sample
    metric: Metric
    full: Reading | None = None

    @contextmanager
    def reference(self, model: PreTrainedModel) -> Iterator[Reading]:
        """Give a reading with the full cache, which may be changed."""
        if self.full is not None:
            with self.full.branched() as branch:
                yield branch
            return
        with opened_cache(model, None) as cache:
            yield Reading(model, cache)

    def judged(self, text: str) -> float:
        """Return the score of a text.

        Raises InvalidValueError if the metric judges no texts.
        """
        if self.metric.judge is None:
            raise InvalidValueError(
                f"metric {self.metric.name!r} has no judge, so it cannot score a text."
            )
        return float(self.metric.judge(text, self.sample))

    def parts(self, text: str) -> dict[str, float]:
        """Return the further figures of a text; none if the metric has none."""
        parts = self.metric.parts
        return {} if parts is None else dict(parts(text, self.sample))

    def tokens(self, text: str) -> list[int]:
        """Return the tokens of an answer or a choice.

        Raises InvalidValueError if there are none.
        """
        tokens: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        if not tokens:
            raise InvalidValueError(f"an answer or choice of sample {self.sample.name!r} is empty.")
        return tokens


def _written(reading: Reading, asked: Asked) -> Mapping[str, Any]:
    sample = asked.sample
    tokens = reading.write(
        asked.prompt,
        limit=sample.max_new_tokens or 1,
        ends=ends_of(reading.model, asked.tokenizer),
        least=sample.min_new_tokens,
    )
    return written_fields(asked, tokens)


def written_fields(asked: Asked, tokens: list[int]) -> Mapping[str, Any]:
    """Return the fields of a row that come of the tokens that were written."""
    text = str(asked.tokenizer.decode(tokens, skip_special_tokens=True))
    for stop in asked.sample.stop:
        text = text.partition(stop)[0]
    return {
        "text": text,
        "score": asked.judged(text),
        "parts": asked.parts(text),
        "new_tokens": len(tokens),
    }


def _chosen(reading: Reading, asked: Asked) -> Mapping[str, Any]:
    choices = asked.sample.choices
    if len(choices) < 2:
        raise InvalidValueError(
            f"sample {asked.sample.name!r} has {len(choices)} choices, and metric "
            f"{asked.metric.name!r} needs two or more."
        )
    prompt = held_back(asked.prompt)
    logits = reading.ask(prompt)
    reading.see(prompt)
    cache, losses = reading.cache, []
    for choice in choices:
        with copied_cache(cache) as reading.cache:
            losses.append(reading.loss(logits, asked.tokens(choice)))
    reading.cache = cache
    text = choices[losses.index(min(losses))]
    return {"text": text, "score": asked.judged(text), "parts": asked.parts(text)}


def _likelihood(reading: Reading, asked: Asked) -> Mapping[str, Any]:
    sample, prompt = asked.sample, held_back(asked.prompt)
    if not sample.answers:
        raise InvalidValueError(f"sample {sample.name!r} has no answer, so it has no likelihood.")
    tokens = asked.tokens(sample.answers[0])
    logits = reading.ask(prompt)
    reading.see(prompt)
    loss = reading.loss(logits, tokens)
    count = len(tokens)
    return {"score": loss / count, "weight": count, "new_tokens": count}


def _streamed(reading: Reading, asked: Asked) -> Mapping[str, Any]:
    prompt = asked.prompt
    if prompt.tokens < 2:
        raise InvalidValueError(
            f"sample {asked.sample.name!r} has {prompt.tokens} token. Perplexity needs two or more."
        )
    losses = reading.stream(torch.tensor([prompt.ids]), asked.metric.chunk)
    reading.see(prompt)
    parts = losses.tensor_split(min(STRETCHES, len(losses)))
    return {
        "score": float(losses.mean()),
        "weight": len(losses),
        "curve": [float(part.mean()) for part in parts],
    }


def _conversed(reading: Reading, asked: Asked) -> Mapping[str, Any]:
    loss, count = reading.converse(asked.prompt)
    if not count:
        raise InvalidValueError(
            f"the agent's turns of sample {asked.sample.name!r} have no token to predict."
        )
    return {"score": loss / count, "weight": count, "new_tokens": count}


def _agreed(reading: Reading, asked: Asked) -> Mapping[str, Any]:
    """Follow what the full cache writes; the score is the share before the first other token.

    The error of attention is ||y - y_full|| / ||y_full||, with y what an attention block puts out.
    The hidden states are those of each run, so errors of earlier layers are in it.
    """
    prompt = held_back(asked.prompt)
    limit = asked.sample.max_new_tokens or 1
    ends = ends_of(reading.model, asked.tokenizer)
    with asked.reference(reading.model) as full, outputs_heard(reading.model) as theirs:
        tokens, expected = full.follow(prompt, None, limit=limit, ends=ends)
    with outputs_heard(reading.model) as ours:
        _, found = reading.follow(prompt, tokens, limit=limit, ends=ends)
    error = error_of_outputs(ours, theirs, last=len(tokens))
    same = (found.argmax(-1) == expected.argmax(-1)).tolist()
    divergence = (expected.exp() * (expected - found)).nansum(-1).mean()
    return {
        "text": str(asked.tokenizer.decode(found.argmax(-1).tolist(), skip_special_tokens=True)),
        "score": [*same, False].index(False) / len(same),
        "divergence": float(divergence),
        "parts": {} if error is None else {"error of attention": error},
        "new_tokens": len(tokens),
    }


HELD_BACK: tuple[Asks, ...] = ("choice", "likelihood", "agreement")
"""What is asked for with the last token held back; see `held_back`."""

Ask: TypeAlias = Callable[[Reading, Asked], Mapping[str, Any]]

ASKS: Mapping[Asks, Ask] = {
    "text": _written,
    "choice": _chosen,
    "likelihood": _likelihood,
    "stream": _streamed,
    "dialogue": _conversed,
    "agreement": _agreed,
}
"""How each thing is asked for, and the fields of a row that come of it."""
