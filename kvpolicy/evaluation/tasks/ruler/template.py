"""The texts of RULER's prompts, and how answers to them are scored."""

from __future__ import annotations

import re
from typing import Any

import attrs

from kvpolicy.evaluation.measures.catalogue import best, share_found
from kvpolicy.evaluation.measures.text import contains
from kvpolicy.task import Metric, Sample

_CONTROL = re.compile(r"[\x00-\x1f]")


@attrs.frozen(kw_only=True)
class Template:
    """A prompt in three parts: the context, the question behind it, and how the answer begins."""

    context: str
    question: str
    cue: str

    def filled(self, **fields: Any) -> Template:
        """Return the template with its fields filled in.

        >>> Template(context="{a}!", question="{b}?", cue="").filled(a=1, b=2).text
        '1!2?'
        """
        parts = attrs.asdict(self)
        return Template(**{name: text.format(**fields) for name, text in parts.items()})

    def replaced(self, old: str, new: str) -> Template:
        """Return the template with one text in place of another."""
        parts = attrs.asdict(self)
        return Template(**{name: text.replace(old, new) for name, text in parts.items()})

    @property
    def text(self) -> str:
        """All of it: what a model reads without a chat template."""
        return self.context + self.question + self.cue


def cleaned(text: str) -> str:
    r"""Return an answer as RULER scores it: control characters are line ends, none at the ends.

    >>> cleaned(" one\ttwo\x00 ")
    'one\ntwo'
    """
    return _CONTROL.sub("\n", text.strip()).strip()


def _all(text: str, sample: Sample) -> float:
    return share_found(cleaned(text), sample)


ALL = Metric(name="string_match_all", judge=_all)
"""The share of the answers that occur in the text."""
PART = Metric(
    name="string_match_part", judge=best(lambda text, answer: contains(cleaned(text), answer))
)
"""Whether one of the answers occurs in the text."""

NIAH = Template(
    context=(
        "Some special magic {type_needle_v} are hidden within the following text. Make sure to "
        "memorize it. I will quiz you about the {type_needle_v} afterwards.\n{context}"
    ),
    question=(
        "\nWhat are all the special magic {type_needle_v} for {query} mentioned in the provided "
        "text?"
    ),
    cue=" The special magic {type_needle_v} for {query} mentioned in the provided text are",
)
VARIABLES = Template(
    context=(
        "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n"
        "{context}"
    ),
    question=(
        "\nQuestion: Find all variables that are assigned the value {query} in the text above."
    ),
    cue=(
        " Answer: According to the chain(s) of variable assignment in the text above, {num_v} "
        "variables are assigned the value {query}, they are: "
    ),
)
COMMON_WORDS = Template(
    context=(
        "Below is a numbered list of words. In these words, some appear more often than others. "
        "Memorize the ones that appear most often.\n{context}"
    ),
    question="\nQuestion: What are the 10 most common words in the above list?",
    cue=" Answer: The top 10 words that appear most often in the list are:",
)
FREQUENT_WORDS = Template(
    context=(
        "Read the following coded text and track the frequency of each coded word. Find the three "
        "most frequently appeared coded words. {context}"
    ),
    question=(
        "\nQuestion: Do not provide any explanation. Please ignore the dots '....'. What are the "
        "three most frequently appeared words in the above coded text?"
    ),
    cue=(
        " Answer: According to the coded text above, the three most frequently appeared words are:"
    ),
)
QA = Template(
    context=(
        "Answer the question based on the given documents. Only give me the answer and do not "
        "output any other words.\n\nThe following are given documents.\n\n{context}"
    ),
    question=(
        "\n\nAnswer the question based on the given documents. Only give me the answer and do not "
        "output any other words.\n\nQuestion: {query}"
    ),
    cue=" Answer:",
)
