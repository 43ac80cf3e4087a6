"""A context with its questions, of a size that fits a number of tokens."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Any, Protocol

import attrs

from kvpolicy.errors import InvalidValueError


@attrs.frozen(kw_only=True)
class Query:
    """A question, how the answer begins, and every text that the answer must hold."""

    question: str
    cue: str = ""
    answers: tuple[str, ...]


@attrs.frozen(kw_only=True)
class Session:
    """A context, and what is asked about it."""

    context: str
    queries: tuple[Query, ...]


class Write(Protocol):
    """Writes a session with so many units of context and so many questions."""

    def __call__(self, rng: Random, units: int, questions: int) -> Session:
        """Return a session. The units are at least as many as the questions."""
        ...


@attrs.frozen(kw_only=True)
class Sessions:
    """Writes sessions whose longest prompt has at most `room` tokens, and as many as possible.

    Each session has random numbers of its own, so that the first ones are the same however many
    there are.
    """

    write: Write
    tokenizer: Any
    room: int
    questions: int
    seed: int

    def __call__(self, count: int) -> Iterator[Session]:
        """Yield `count` sessions.

        Raises InvalidValueError if not even a unit for each question fits.
        """
        most = self._most()
        for number in range(count):
            units = most
            while not self._fits(session := self._written(number, units)):
                if units == self.questions:
                    raise self._too_short(session)
                units = max(self.questions, min(units - 1, int(0.99 * units)))
            yield session

    def _most(self) -> int:
        """Return the most units with which the first session fits."""
        low, high = self.questions, 2 * self.questions
        if not self._fits(session := self._written(0, low)):
            raise self._too_short(session)
        while self._fits(self._written(0, high)):
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            if self._fits(self._written(0, middle)):
                low = middle
            else:
                high = middle
        return low

    def _written(self, number: int, units: int) -> Session:
        rng = Random(f"seed {self.seed}, session {number}")
        return self.write(rng, units, self.questions)

    def _fits(self, session: Session) -> bool:
        return self._tokens(session) <= self.room

    def _tokens(self, session: Session) -> int:
        asked = max((query.question + query.cue for query in session.queries), key=len)
        return len(self.tokenizer(session.context + asked, add_special_tokens=False)["input_ids"])

    def _too_short(self, session: Session) -> InvalidValueError:
        return InvalidValueError(
            f"the length leaves {self.room} tokens for a prompt, but the shortest one with "
            f"{self.questions} questions has {self._tokens(session)}. Give a larger length, or "
            "fewer questions."
        )
