"""A task of evaluation: samples and a metric; a plugin may offer one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

import attrs

Asks: TypeAlias = Literal["text", "choice", "likelihood", "stream", "dialogue", "agreement"]
"""What a model is asked for: to write, to choose, how likely the answer is, or the whole text, or
the agent's turns of a dialogue, and whether it goes on as with the full cache."""
PERPLEXITIES: tuple[Asks, ...] = ("likelihood", "stream", "dialogue")
"""What is asked for where the figure is a perplexity, which is better where it is lower."""
AGENTS = ("assistant", "agent", "model")
"""The roles of messages that a model may have written."""


def _texts(given: Iterable[str]) -> tuple[str, ...]:
    return tuple(given)


@attrs.frozen(kw_only=True)
class Sample:
    """One question: what a model reads, and what it should say.

    - `name`: tells the samples of a task apart.
    - `context`, `question`: the text that is read, in this order and with nothing in between.
      The question may be asked after the context was evicted.
    - `cue`: begins the answer. With a chat template it stands behind the template.
    - `messages`: a conversation, which takes the place of context and question; the last message
      is the question. Each has a `role` and a `content`.
    - `answers`: every answer that is right.
    - `choices`: the texts to choose from, for a metric that asks for a choice.
    - `max_new_tokens`, `min_new_tokens`: how many tokens are decoded at most and at least; None
      leaves the limit to the run.
    - `stop`: texts that end an answer. They are cut off.
    - `outside`: the question is asked after the context was evicted, whatever the run does.
    - `chat`: whether the chat template is used; None leaves it to the run.
    - `extra`: what the metric needs beyond the answers.
    """

    name: str
    context: str = attrs.field(default="", repr=False)
    question: str = ""
    cue: str = ""
    messages: tuple[Mapping[str, str], ...] = ()
    answers: tuple[str, ...] = attrs.field(default=(), converter=_texts)
    choices: tuple[str, ...] = attrs.field(default=(), converter=_texts)
    max_new_tokens: int | None = None
    min_new_tokens: int = 0
    stop: tuple[str, ...] = attrs.field(default=(), converter=_texts)
    chat: bool | None = None
    outside: bool = False
    extra: Mapping[str, Any] = attrs.field(factory=dict, repr=False)


Judge: TypeAlias = Callable[[str, Sample], float]
"""Says how good a text is as the answer to a sample: 0 is wrong, 1 is right."""
Parts: TypeAlias = Callable[[str, Sample], Mapping[str, float]]
"""Gives several figures of a text by their names: each instruction that it follows, say."""


@attrs.frozen(kw_only=True)
class Metric:
    """How answers become figures.

    `judge` is given what the model wrote, or the choice that it found likeliest. A metric that asks
    for a likelihood has none: its figure is the perplexity of the answers, of the whole text if it
    asks for a stream, or of the agent's turns if it asks for a dialogue. A stream is read `chunk`
    tokens at a time, with an eviction after each; a dialogue is evicted before each agent's turn.
    `parts` gives further figures of a text, which rows hold beside the score.

    >>> Metric(name="short", judge=lambda text, sample: len(text) < 9).figure([1.0, 0.0], [1, 1])
    0.5
    """

    name: str
    judge: Judge | None = attrs.field(default=None, repr=False)
    asks: Asks = "text"
    chunk: int = 1
    parts: Parts | None = attrs.field(default=None, repr=False)

    @property
    def larger_is_better(self) -> bool:
        """Whether a larger figure is a better one."""
        return self.asks not in PERPLEXITIES

    def figure(self, scores: Iterable[float], weights: Iterable[float]) -> float:
        """Return the figure of many samples: the weighted mean, or the perplexity.

        The scores of a likelihood are the mean negative log-likelihood of a token, the weights
        the numbers of tokens.
        """
        from math import exp, fsum, inf

        pairs = list(zip(scores, weights, strict=True))
        mean = fsum(score * weight for score, weight in pairs) / fsum(each for _, each in pairs)
        if self.larger_is_better:
            return mean
        return exp(mean) if mean < 700 else inf


@runtime_checkable
class Task(Protocol):
    """Samples and the metric that judges the answers."""

    @property
    def metric(self) -> Metric:
        """How answers become figures."""
        ...

    def samples(self, tokenizer: Any) -> Iterable[Sample]:
        """Yield the samples; `tokenizer` is the model's, for texts of a certain length.

        The same tokenizer gives the same samples, each under a name of its own.
        """
        ...
