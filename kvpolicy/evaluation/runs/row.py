"""One run: what an entrant answered to a sample, how good that is, and what the cache held."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import attrs

from kvpolicy.budget import Budget, Within, checked_budget, plain


def texts(given: Iterable[str]) -> tuple[str, ...]:
    """Return texts as a tuple; JSON has only lists."""
    return tuple(given)


def numbers(given: Iterable[float]) -> tuple[float, ...]:
    """Return numbers as a tuple; JSON has only lists."""
    return tuple(given)


def budget(given: Any) -> Any:
    """Return a budget; JSON has a mapping for an error target."""
    return checked_budget(given) if isinstance(given, Mapping) else given


@attrs.frozen(kw_only=True)
class Row:
    """A line of a file of results.

    - `key`: a digest of all that decides the outcome; equal keys are the same run.
    - `task`, `metric`, `asks`, `sample`, `question`: what was asked, and where the question stood.
    - `entrant`, `budget`, `policy`: who answered; the full cache has neither budget nor policy.
    - `score`, `weight`: what the metric made of the answer; None if there is an `error`.
    - `parts`: further figures that the metric gives of the text, by name.
    - `divergence`: for agreement, the mean Kullback-Leibler divergence of the predicted tokens from
      those with the full cache, in nats.
    - `curve`: for a stream, the mean loss of each of up to 32 stretches of the text, which are
      equally long, or differ by a token.
    - `text`: what was written, or the choice that was made; `answers` what is right.
    - `tokens`, `new_tokens`: the prompt's and the answer's. `prompt`: a digest of the prompt.
    - `context`: a digest of the text that is evicted before the question is asked; None where the
      question stands inside. Questions on the same text have the same one.
    - `positions`: how many of the prompt's positions a key/value head held when the answer began,
      on average over layers and heads.
    - `nbytes`: bytes of the cache in the end. `peak_nbytes`: the most that a GPU had
      allocated at once, the model included; None on other devices. Where several questions share
      a context, the cache that waits for the next question is included.
    - `footprint`, `full_footprint`: entries that attention had, summed over the tokens read.
    - `first_seconds`, `token_seconds`: the time to the first token, and of each later one. Where
      several questions share a context, it was read once; that time, and those entries, count
      for each of them. The time to copy the cache does not count.
    - `together`: how many prompts were read at a time. If there were several, no times are known;
      the bytes are an equal share of the cache's.
    - `run`: the model, the code, versions and the machine.
    """

    key: str
    task: str
    metric: str
    sample: str
    question: str
    entrant: str
    asks: str = "text"
    budget: Budget | None = attrs.field(default=None, converter=budget)
    policy: Mapping[str, Any] | None = attrs.field(default=None, repr=False)
    score: float | None = None
    weight: float = 1.0
    parts: Mapping[str, float] = attrs.field(factory=dict, repr=False)
    divergence: float | None = None
    curve: tuple[float, ...] = attrs.field(default=(), converter=numbers, repr=False)
    text: str | None = None
    answers: tuple[str, ...] = attrs.field(default=(), converter=texts)
    error: str | None = None
    tokens: int | None = None
    new_tokens: int | None = None
    prompt: str | None = None
    context: str | None = None
    positions: float | None = None
    nbytes: int | None = None
    peak_nbytes: int | None = None
    footprint: int | None = None
    full_footprint: int | None = None
    first_seconds: float | None = None
    token_seconds: float | None = None
    together: int = 1
    run: Mapping[str, Any] = attrs.field(factory=dict, repr=False)

    @property
    def failed(self) -> bool:
        """Whether there is no score."""
        return self.score is None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON data."""
        return attrs.asdict(self, value_serializer=_plain)


def _plain(owner: object, field: object, value: Any) -> Any:
    return plain(value) if isinstance(value, Within) else value
