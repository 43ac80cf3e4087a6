"""Tasks with several questions on each context."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import attrs
from attrs.validators import optional

from kvpolicy.evaluation.measures.catalogue import METRICS
from kvpolicy.evaluation.tasks.ruler.template import ALL
from kvpolicy.evaluation.tasks.scbench.session import Sessions
from kvpolicy.evaluation.tasks.scbench.writers import WRITERS
from kvpolicy.options import count, natural, one_of
from kvpolicy.task import Metric, Sample

TASKS = tuple(WRITERS)


@attrs.frozen(kw_only=True)
class SharedContextTask:
    """Contexts with so many `questions` each; a prompt and its answer have at most `length` tokens.

    SCBench has five questions on a context. Its contexts are read once for all of them if the
    question is asked outside. `template_tokens` are left free for a chat template.
    """

    task: str = attrs.field(validator=one_of(*TASKS))
    length: int = attrs.field(default=4096, validator=count)
    contexts: int = attrs.field(default=20, validator=count)
    questions: int = attrs.field(default=5, validator=count)
    new_tokens: int | None = attrs.field(default=None, validator=optional(count))
    seed: int = attrs.field(default=42, validator=natural)
    template_tokens: int = attrs.field(default=0, validator=natural)

    @property
    def metric(self) -> Metric:
        """Whether the answer occurs in the text; for variables, the share of them that do."""
        return ALL if self.task == "vt" else METRICS["contains"]

    def samples(self, tokenizer: Any) -> Iterator[Sample]:
        """Yield the questions, context by context.

        Raises InvalidValueError if the length is too short for the questions.
        """
        write, usual = WRITERS[self.task]
        new_tokens = self.new_tokens or usual
        sessions = Sessions(
            write=write,
            tokenizer=tokenizer,
            room=self.length - self.template_tokens - new_tokens,
            questions=self.questions,
            seed=self.seed,
        )
        for number, session in enumerate(sessions(self.contexts)):
            for turn, query in enumerate(session.queries):
                yield Sample(
                    name=f"{number}-{turn}",
                    context=session.context,
                    question=query.question,
                    cue=query.cue,
                    answers=query.answers,
                    max_new_tokens=new_tokens,
                )
