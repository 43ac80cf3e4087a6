"""What every task of evaluation promises."""

from __future__ import annotations

import math
from itertools import islice

from kvpolicy.task import Metric, Sample, Task
from kvpolicy.testing.promises.promise import Draw, promise
from kvpolicy.testing.tokenizers import byte_tokenizer

SHOWN = 4
"""How many samples are looked at."""


@promise("task", examples=1)
def gives_the_same_samples_twice(task: Task, draw: Draw) -> None:
    """The same tokenizer gives the same samples, at least one."""
    first, second = _samples(task), _samples(task)
    assert first
    assert first == second


@promise("task", examples=1)
def names_its_samples(task: Task, draw: Draw) -> None:
    """No two samples have the same name, and each has a text to read."""
    samples = _samples(task)
    assert len({sample.name for sample in samples}) == len(samples)
    assert all(sample.context or sample.question or sample.messages for sample in samples)


@promise("task", examples=1)
def judges_an_answer_above_an_empty_text(task: Task, draw: Draw) -> None:
    """A right answer scores more than nothing does, and both scores are finite."""
    metric: Metric = task.metric
    assert isinstance(metric, Metric)
    if metric.judge is None:
        assert metric.asks in ("likelihood", "stream", "dialogue", "agreement")
        return
    for sample in _samples(task):
        for answer in sample.answers:
            right, empty = (float(metric.judge(text, sample)) for text in (answer, ""))
            assert math.isfinite(right)
            assert math.isfinite(empty)
            assert right > empty


def _samples(task: Task) -> list[Sample]:
    return list(islice(task.samples(byte_tokenizer()), SHOWN))
