"""How much text fits a length: RULER's search for the size of the context."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import attrs

from kvpolicy.errors import InvalidValueError
from kvpolicy.evaluation.tasks.ruler.template import Template
from kvpolicy.task import Sample

Written = tuple[Template, list[str]]
"""A prompt and its answers."""


@attrs.frozen(kw_only=True)
class Fitting:
    """Writes prompts that are at most `length` tokens long, `new_tokens` of the answer included.

    `write` makes a prompt with so many units of context: words, lines or documents. `step` is by
    how many units a prompt shrinks that turned out too long, and the fewest that there are.
    """

    tokenizer: Any
    length: int
    new_tokens: int
    step: int
    write: Callable[[int], Written]

    def most(self, highest: int, *, extra: int = 0) -> int:
        """Return the most units that fit, by bisection from `step` to `highest`.

        `extra` tokens are added to every prompt. Where `step` units are too many, RULER finds no
        end; here fewer are tried.
        """
        found = self._bisected(self.step, max(highest, 2 * self.step), extra)
        return found or self._bisected(1, self.step - 1, extra) or 1

    def highest(self, units: int) -> int:
        """Return three times the units that are expected to fit, by a prompt with so many."""
        return int(self.length / (self.tokens(self.write(units)[0].text) / units) * 3)

    def fitting(self, units: int) -> Written:
        """Return a prompt of at most so many units that is not too long.

        Raises InvalidValueError if not even the smallest one fits.
        """
        while units > 0:
            try:
                written = self.write(units)
            except ValueError as error:
                raise self._too_short(f"{units} units of context hold no needles") from error
            tokens = self.tokens(written[0].text) + self.new_tokens
            if tokens <= self.length:
                return written
            units -= self.step if units > self.step else 1
        raise self._too_short(f"the shortest prompt and its answer have {tokens} tokens")

    def _bisected(self, low: int, high: int, extra: int) -> int:
        best = 0
        while low <= high:
            middle = (low + high) // 2
            if self._fits(middle, extra):
                best, low = middle, middle + 1
            else:
                high = middle - 1
        return best

    def _fits(self, units: int, extra: int) -> bool:
        try:
            text = self.write(units)[0].text
        except ValueError:  # too few units for all needles
            return True
        return self.tokens(text) + extra + self.new_tokens <= self.length

    def _too_short(self, why: str) -> InvalidValueError:
        return InvalidValueError(f"length {self.length} is too short: {why}. Give a larger length.")

    def tokens(self, text: str) -> int:
        """Count the tokens of a text, without those that begin or end it."""
        return len(self.tokenizer(text, add_special_tokens=False)["input_ids"])


def as_samples(written: Iterator[Written], new_tokens: int) -> Iterator[Sample]:
    """Make samples of prompts, and number them."""
    for number, (prompt, answers) in enumerate(written):
        yield Sample(
            name=str(number),
            context=prompt.context,
            question=prompt.question,
            cue=prompt.cue,
            answers=answers,
            max_new_tokens=new_tokens,
        )
