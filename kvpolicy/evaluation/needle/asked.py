"""Questions about texts, without the places of what they ask for, drawn from a seed."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import TypeAlias

import attrs


@attrs.frozen(kw_only=True)
class Asked:
    """A text, what is asked behind it, and the answer."""

    context: str
    question: str
    answer: str

    @property
    def text(self) -> str:
        """The text that ends in its question."""
        return f"{self.context} {self.question}"


Write: TypeAlias = Callable[[Random, int, int], Asked]
"""Writes a question and its text, in so many tokens, with so many facts."""


def drawn(
    write: Write, name: str, *, tokens: int, facts: int, count: int, seed: int
) -> list[Asked]:
    """Write `count` of them. Equal seeds give equal texts, and another `name` gives others."""
    rng = Random(f"{name}, {tokens} tokens, {facts} facts, seed {seed}")
    return [write(rng, tokens, facts) for _ in range(count)]
