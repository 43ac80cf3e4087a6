"""Each promise of a task catches one that breaks it."""

import sys
from pathlib import Path

import attrs

from kvpolicy.task import Metric, Sample

sys.path.insert(0, str(Path(__file__).parent))
from faulty_parts import COUNTER, promises_catch, promises_hold


class Question:
    """A blameless task, of which every mutant changes one thing."""

    metric = Metric(name="same", judge=lambda text, sample: text in sample.answers)

    def samples(self, tokenizer):
        return [Sample(name=name, context="red or blue?", answers=("red",)) for name in "ab"]


class Unsteady(Question):
    def samples(self, tokenizer):
        return [Sample(name=str(next(COUNTER)), context="red?", answers=("red",))]


class Nameless(Question):
    def samples(self, tokenizer):
        return [attrs.evolve(sample, name="a") for sample in super().samples(tokenizer)]


class Indifferent(Question):
    metric = Metric(name="any", judge=lambda text, sample: 1.0)


test_a_promise_catches_a_part_that_breaks_it = promises_catch(
    "task",
    {
        "gives_the_same_samples_twice": Unsteady(),
        "names_its_samples": Nameless(),
        "judges_an_answer_above_an_empty_text": Indifferent(),
    },
)
test_a_blameless_part_keeps_every_promise = promises_hold("task", Question())
