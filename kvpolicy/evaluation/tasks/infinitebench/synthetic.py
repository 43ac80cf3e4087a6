"""A synthetic task of InfiniteBench: its samples are written here, or read from its file."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from random import Random
from typing import Any

import attrs
from attrs.validators import optional

from kvpolicy.errors import InvalidValueError
from kvpolicy.evaluation.tasks.infinitebench.generators import GENERATORS
from kvpolicy.evaluation.tasks.infinitebench.metrics import metric_of
from kvpolicy.evaluation.tasks.infinitebench.task import (
    InfiniteBenchTask,
    new_tokens_of,
    sample_of,
)
from kvpolicy.evaluation.tasks.ruler.length import Fitting, Written
from kvpolicy.evaluation.tasks.ruler.template import Template
from kvpolicy.options import a_path, count, natural, one_of
from kvpolicy.task import Metric, Sample

SYNTHETIC = tuple(GENERATORS)
_PROBE = 20
"""The text with which lengths are estimated is so many times smaller than InfiniteBench's."""
_STEPS = 200
"""A text that turned out too long is made shorter by one of so many parts."""


@attrs.frozen(kw_only=True)
class SyntheticTask:
    """Samples of InfiniteBench's size, or with prompts of at most `length` tokens.

    `num_samples` samples go evenly through the depths or kinds of the task; None means as many as
    InfiniteBench has. An answer has at most `new_tokens`; None means as many as in the preset, and
    in `math_calc` two for each number of the sum. With `folder` the samples are those of a file.

    Raises InvalidValueError if both a folder and `length` or `num_samples` are given.
    """

    task: str = attrs.field(validator=one_of(*SYNTHETIC))
    length: int | None = attrs.field(default=None, validator=optional(count))
    num_samples: int | None = attrs.field(default=None, validator=optional(count))
    new_tokens: int | None = attrs.field(default=None, validator=optional(count))
    seed: int = attrs.field(default=42, validator=natural)
    folder: str | None = attrs.field(default=None, validator=optional(a_path))
    preset: str = attrs.field(default="official", validator=one_of("official", "restkv"))

    def __attrs_post_init__(self) -> None:
        """Refuse options that contradict each other."""
        if self.folder is not None and (self.length or self.num_samples):
            raise InvalidValueError(
                f"length and num_samples are for samples that are written, and folder "
                f"{self.folder!r} is for those of {self.task}.jsonl. Give the folder alone, or no "
                "folder."
            )

    @property
    def metric(self) -> Metric:
        """InfiniteBench's own."""
        return metric_of(self.task)

    def samples(self, tokenizer: Any) -> Iterator[Sample]:
        """Yield the samples.

        Raises InvalidValueError if `length` is too short for the task, and what
        `InfiniteBenchTask.samples` raises.
        """
        if self.folder is not None:
            task = InfiniteBenchTask(task=self.task, folder=self.folder, preset=self.preset)
            samples = task.samples(tokenizer)
        else:
            samples = self._written(tokenizer)
        for sample in samples:
            yield attrs.evolve(sample, max_new_tokens=self.new_tokens or sample.max_new_tokens)

    def _written(self, tokenizer: Any) -> Iterator[Sample]:
        generator, rng = GENERATORS[self.task], Random(self.seed)
        number = self.num_samples or generator.samples
        fitting, size = self._fitting(tokenizer, rng)
        for place in range(number):
            write = partial(self._prompt, rng, place * generator.variants // number)
            fit = write if fitting is None else attrs.evolve(fitting, write=write).fitting
            prompt, answers = fit(size)
            yield Sample(
                name=str(place),
                context=prompt.context,
                question=prompt.question,
                answers=answers,
                max_new_tokens=self._limit(answers),
                chat=False,
            )

    def _fitting(self, tokenizer: Any, rng: Random) -> tuple[Fitting | None, int]:
        """Return what fits prompts to the length, if one is given, and the size of the contexts."""
        size = GENERATORS[self.task].size
        if self.length is None:
            return None, size
        write = partial(self._prompt, rng, 0)
        fitting = Fitting(
            tokenizer=tokenizer, length=self.length, new_tokens=0, step=1, write=write
        )
        size = fitting.most(fitting.highest(size // _PROBE))
        return attrs.evolve(fitting, step=max(1, size // _STEPS)), size

    def _prompt(self, rng: Random, variant: int, size: int) -> Written:
        line = GENERATORS[self.task].write(rng, size, variant)
        sample = sample_of(self.task, self.preset, f"a sample of {self.task}", line)
        return Template(context=sample.context, question=sample.question, cue=""), [*sample.answers]

    def _limit(self, answers: list[str]) -> int:
        if self.task == "math_calc":
            numbers = answers[0].count(",") + 2  # one more than there are values
            return 2 * numbers  # as many as InfiniteBench's 30,000 for 15,000 numbers
        return new_tokens_of(self.task, self.preset)
