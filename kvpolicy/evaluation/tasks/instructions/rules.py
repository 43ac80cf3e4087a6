"""Instructions that a rule can check: how each is written, and whether a text follows it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from random import Random
from typing import Any

import attrs

from kvpolicy.evaluation.needle.vocabulary import CODE_WORDS

Options = Mapping[str, Any]
"""What an instruction asks for, as plain data: a word, or a number."""

FIRST_WORDS = ("Listen", "Today", "Friends", "Imagine", "Once")
LAST_SENTENCES = ("That is all.", "Good night.", "The end.", "Thank you for reading.")
COMMON_WORDS = ("and", "of", "to", "a", "with")
"""None of them is in a sentence that another rule asks for."""


@attrs.frozen(kw_only=True)
class Rule:
    """A kind of instruction.

    `draw` chooses its options, `sentence` says it, with the options filled in, and `follows` checks
    a text that is not empty. No two rules of one `place` go into a prompt: they would get in each
    other's way.
    """

    place: str
    sentence: str
    follows: Callable[[str, Options], bool]
    draw: Callable[[Random], Options] = attrs.field(default=lambda rng: {})


RULES: Mapping[str, Rule] = {
    "lower_case": Rule(
        place="case",
        sentence="Use no capital letters.",
        follows=lambda text, options: text == text.lower(),
    ),
    "upper_case": Rule(
        place="case",
        sentence="Write all letters as capitals.",
        follows=lambda text, options: text == text.upper(),
    ),
    "no_comma": Rule(
        place="comma",
        sentence="Use no comma.",
        follows=lambda text, options: "," not in text,
    ),
    "keyword": Rule(
        place="keyword",
        sentence='Use the word "{word}".',
        follows=lambda text, options: options["word"] in words_of(text),
        draw=lambda rng: {"word": rng.choice(CODE_WORDS)},
    ),
    "forbidden": Rule(
        place="forbidden",
        sentence='Never use the word "{word}".',
        follows=lambda text, options: options["word"] not in words_of(text),
        draw=lambda rng: {"word": rng.choice(COMMON_WORDS)},
    ),
    "first_word": Rule(
        place="beginning",
        sentence='Begin with the word "{word}".',
        follows=lambda text, options: words_of(text)[:1] == [options["word"].lower()],
        draw=lambda rng: {"word": rng.choice(FIRST_WORDS)},
    ),
    "last_sentence": Rule(
        place="end",
        sentence='End with the words "{text}"',
        follows=lambda text, options: text.lower().endswith(options["text"].lower()),
        draw=lambda rng: {"text": rng.choice(LAST_SENTENCES)},
    ),
    "postscript": Rule(
        place="end",
        sentence='Add a last line that begins with "P.S."',
        follows=lambda text, options: text.lower().split("\n")[-1].strip().startswith("p.s."),
    ),
    "title": Rule(
        place="title",
        sentence="Give a title in double angle brackets, such as <<my title>>.",
        follows=lambda text, options: re.search(r"<<[^<>\n]+>>", text) is not None,
    ),
    "placeholders": Rule(
        place="placeholders",
        sentence="Use {number} placeholders in square brackets, such as [name].",
        follows=lambda text, options: len(re.findall(r"\[[^\[\]\n]+\]", text)) >= options["number"],
        draw=lambda rng: {"number": rng.randint(2, 4)},
    ),
    "most_words": Rule(
        place="length",
        sentence="Use at most {number} words.",
        follows=lambda text, options: len(text.split()) <= options["number"],
        draw=lambda rng: {"number": rng.choice((30, 40, 50))},
    ),
    "lines": Rule(
        place="lines",
        sentence="Write {number} lines that begin with a star (*).",
        follows=lambda text, options: len(_starred(text)) == options["number"],
        draw=lambda rng: {"number": rng.randint(2, 4)},
    ),
}
"""Every kind of instruction by its name."""


def draw_rules(rng: Random, number: int) -> list[dict[str, Any]]:
    """Return so many rules that go together, in any order: each its `kind` and its options."""
    kinds = list(RULES)
    rng.shuffle(kinds)
    places = {RULES[kind].place: kind for kind in kinds}
    return [{"kind": kind, **RULES[kind].draw(rng)} for kind in list(places.values())[:number]]


def sentence_of(rule: Options) -> str:
    """Return the sentence that gives an instruction.

    >>> sentence_of({"kind": "keyword", "word": "amber"})
    'Use the word "amber".'
    """
    return RULES[rule["kind"]].sentence.format(**rule)


def follows(text: str, rule: Options) -> bool:
    """Whether a text follows an instruction; one without words follows none.

    >>> rule = {"kind": "no_comma"}
    >>> follows("Red and blue.", rule), follows("Red, blue.", rule), follows(" ", rule)
    (True, False, False)
    """
    text = text.strip()
    return bool(words_of(text)) and RULES[rule["kind"]].follows(text, rule)


def words_of(text: str) -> list[str]:
    """Return the words of a text in lower case, without what stands around them."""
    return re.findall(r"[a-z0-9']+", text.lower())


def _starred(text: str) -> list[str]:
    return [line for line in text.split("\n") if line.lstrip().startswith("*")]


MOST = len({rule.place for rule in RULES.values()})
"""How many rules go together."""
