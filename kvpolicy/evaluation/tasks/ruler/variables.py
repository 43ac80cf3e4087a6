"""RULER's variable tracking: which variables get a value, over several assignments."""

from __future__ import annotations

import string
from collections.abc import Iterator
from random import Random
from typing import Any

import attrs
import numpy as np

from kvpolicy.evaluation.tasks.ruler.length import Fitting, Written, as_samples
from kvpolicy.evaluation.tasks.ruler.niah import NOISE
from kvpolicy.evaluation.tasks.ruler.options import LengthOptions
from kvpolicy.evaluation.tasks.ruler.template import ALL, VARIABLES
from kvpolicy.options import count
from kvpolicy.task import Metric, Sample

_EXAMPLE_LENGTH, _EXAMPLE_VALUE = 500, "12345"


@attrs.frozen(kw_only=True)
class VariablesTask(LengthOptions):
    """Chains of assignments in noise of at most `length` tokens, behind an example of the task.

    See `LengthOptions` for the other options.
    """

    new_tokens: int = attrs.field(default=30, validator=count)
    num_chains: int = attrs.field(default=1, validator=count)
    num_hops: int = attrs.field(default=4, validator=count)

    @property
    def metric(self) -> Metric:
        """The share of the variables that are named."""
        return ALL

    def samples(self, tokenizer: Any) -> Iterator[Sample]:
        """Write an example once, and then the prompts behind it, with other names in it."""
        writer = _Writer(self)
        example = self._example(tokenizer, writer)
        step = 5 if self.length < 4096 else 10

        def behind_example(units: int) -> Written:
            prompt, answers = writer.write(units)
            before = writer.renamed(example) + "\n"
            return attrs.evolve(prompt, context=before + prompt.context), answers

        plain = Fitting(
            tokenizer=tokenizer,
            length=self.room,
            new_tokens=self.new_tokens,
            step=step,
            write=writer.write,
        )
        units = plain.most(plain.highest(step), extra=plain.tokens(example))
        fitting = attrs.evolve(plain, write=behind_example)
        prompts = (fitting.fitting(units) for _ in range(self.num_samples))
        return as_samples(prompts, self.new_tokens)

    def _example(self, tokenizer: Any, writer: _Writer) -> str:
        """Return a solved task of at most 500 tokens."""
        fitting = Fitting(
            tokenizer=tokenizer,
            length=_EXAMPLE_LENGTH - self.template_tokens,
            new_tokens=0,
            step=5,
            write=writer.write_example,
        )
        prompt, answers = fitting.fitting(fitting.most(fitting.highest(5)))
        return f"{prompt.text} {' '.join(answers)}\n"


class _Writer:
    """Writes one prompt after the other, from one stream of random numbers of either library."""

    def __init__(self, task: VariablesTask) -> None:
        self.task, self.rng = task, Random(task.seed)
        self.numbers = np.random.RandomState(task.seed)

    def write(self, units: int) -> Written:
        """Return a prompt with so many lines of noise."""
        return self._written(units, self.task.num_hops, letters=5)

    def write_example(self, units: int) -> Written:
        """Return an example: shorter names, at most 10 hops, and always the same value."""
        return self._written(units, min(10, self.task.num_hops), letters=3, value=_EXAMPLE_VALUE)

    def renamed(self, example: str) -> str:
        """Return the example with other names and another value."""
        for name in example.strip().split()[-self.task.num_hops - 1 :]:
            example = example.replace(name, self._name(len(name)))
        return example.replace(_EXAMPLE_VALUE, self._value())

    def _written(self, units: int, hops: int, letters: int, value: str | None = None) -> Written:
        names = self._names(self.task.num_chains * (hops + 1), letters)
        lines = [NOISE] * units
        first: list[str] = []
        asked = ""
        chains = []
        for start in range(0, len(names), hops + 1):
            own = names[start : start + hops + 1]
            given = value or self._value()
            first, asked = first or own, asked or given
            pairs = zip(own[1:], own, strict=False)
            chains.append(
                [f"VAR {own[0]} = {given}", *(f"VAR {new} = VAR {old} " for new, old in pairs)]
            )
        for chain in chains:
            places = sorted(self.rng.sample(range(len(lines)), len(chain)))
            for offset, (place, assignment) in enumerate(zip(places, chain, strict=True)):
                lines.insert(place + offset, assignment)
        context = "\n".join(lines).replace(". \n", ".\n")
        return VARIABLES.filled(context=context, query=asked, num_v=self.task.num_hops + 1), first

    def _names(self, number: int, letters: int) -> list[str]:
        """Return different names; RULER stops with an error where it draws one twice."""
        drawn = [self._name(letters) for _ in range(number)]
        while len(set(drawn)) < number:
            drawn.append(self._name(letters))
        return list(dict.fromkeys(drawn))

    def _name(self, letters: int) -> str:
        return "".join(self.rng.choices(string.ascii_uppercase, k=letters))

    def _value(self) -> str:
        return str(self.numbers.randint(10000, 99999))
