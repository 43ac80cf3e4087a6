"""The contexts: pairs of a JSON object, strings, chains of variables, and facts."""

from __future__ import annotations

import json
import string
import uuid
from collections.abc import Mapping
from itertools import pairwise
from random import Random

from kvpolicy.evaluation.needle.vocabulary import CODE_WORDS, NAMES
from kvpolicy.evaluation.tasks.ruler.niah import NOISE
from kvpolicy.evaluation.tasks.ruler.template import VARIABLES
from kvpolicy.evaluation.tasks.scbench.session import Query, Session, Write

ENDS = 4
"""How many letters of a string are told, at its beginning and at its end."""
HOPS = 4
"""How many variables of a chain get their value from another variable."""
THINGS = ("password", "locker", "badge", "garden", "boat", "table", "parcel", "window")


def key_values(rng: Random, units: int, questions: int) -> Session:
    """Ask for values of a JSON object with `units` pairs of UUIDs."""
    pairs = [(_uuid(rng), _uuid(rng)) for _ in range(units)]
    return Session(
        context=(
            "Extract the value corresponding to the specified key in the JSON object below.\n\n"
            f"JSON data:\n{json.dumps(dict(pairs))}"
        ),
        queries=tuple(
            Query(
                question=f'\n\nKey: "{key}"',
                cue="\nThe value associated with the specified key is: ",
                answers=(value,),
            )
            for key, value in rng.sample(pairs, questions)
        ),
    )


def prefix_suffix(rng: Random, units: int, questions: int) -> Session:
    """Ask for strings of which the beginning and the end are told.

    For each that is asked for, two others have only the same beginning, or only the same end. No
    other string has both. So there are at least three strings for a question.
    """
    asked: dict[tuple[str, str], str] = {}
    while len(asked) < questions:
        text = _string(rng)
        asked[text[:ENDS], text[-ENDS:]] = text
    others = [_other(rng, asked, first=first) for first, _ in asked]
    others += [_other(rng, asked, last=last) for _, last in asked]
    others += [_other(rng, asked) for _ in range(units - 3 * questions)]
    listed = [*asked.values(), *others]
    rng.shuffle(listed)
    return Session(
        context="Memorize the strings below, one on each line.\n\n" + "\n".join(listed),
        queries=tuple(
            Query(
                question=f'\n\nWhich string begins with "{first}" and ends with "{last}"?',
                cue="\nThe string is: ",
                answers=(text,),
            )
            for (first, last), text in asked.items()
        ),
    )


def variables(rng: Random, units: int, questions: int) -> Session:
    """Ask for the variables of each of so many chains of assignments, in `units` lines of noise.

    A chain is one of RULER's: a variable gets a value, and four more get it from the one before.
    """
    names = _different(rng, questions * (HOPS + 1))
    values = rng.sample(range(10000, 100000), questions)
    chains = [names[start : start + HOPS + 1] for start in range(0, len(names), HOPS + 1)]
    order = [chain for chain in range(questions) for _ in range(HOPS + 1)]
    rng.shuffle(order)
    left = [
        iter((f"VAR {own[0]} = {value}", *(f"VAR {b} = VAR {a}" for a, b in pairwise(own))))
        for own, value in zip(chains, values, strict=True)
    ]
    lines = [NOISE] * units
    places = sorted(rng.sample(range(units + len(order)), len(order)))
    for place, chain in zip(places, order, strict=True):
        lines.insert(place, next(left[chain]))
    context = "\n".join(lines)
    filled = [VARIABLES.filled(context=context, query=each, num_v=HOPS + 1) for each in values]
    return Session(
        context=filled[0].context,
        queries=tuple(
            Query(question=each.question, cue=each.cue, answers=tuple(own))
            for each, own in zip(filled, chains, strict=True)
        ),
    )


def many_facts(rng: Random, units: int, questions: int) -> Session:
    """Ask for some of `units` facts; several facts are about the same person."""
    taken: dict[tuple[str, str], str] = {}
    while len(taken) < units:
        person = f"{rng.choice(NAMES)} {rng.choice(NAMES)}".title()
        for thing in rng.sample(THINGS, min(2, units - len(taken))):
            code = " ".join((*rng.sample(CODE_WORDS, 2), str(rng.randint(100, 999))))
            taken.setdefault((person, thing), code)
    facts = list(taken.items())
    rng.shuffle(facts)
    lines = [f"The code of {name}'s {thing} is {code}." for (name, thing), code in facts]
    return Session(
        context="Memorize the facts below.\n\n" + "\n".join(lines),
        queries=tuple(
            Query(
                question=f"\n\nWhat is the code of {person}'s {thing}?",
                cue=f"\nThe code of {person}'s {thing} is",
                answers=(code,),
            )
            for (person, thing), code in rng.sample(facts, questions)
        ),
    )


WRITERS: Mapping[str, tuple[Write, int]] = {
    "kv": (key_values, 150),
    "prefix_suffix": (prefix_suffix, 150),
    "vt": (variables, 30),
    "many_facts": (many_facts, 30),
}
"""Each kind of context, and how many tokens an answer may have: SCBench's, if it has the kind."""


def _uuid(rng: Random) -> str:
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))


def _string(rng: Random) -> str:
    return "".join(rng.choices(string.ascii_lowercase, k=rng.randint(3 * ENDS, 8 * ENDS)))


def _other(
    rng: Random, asked: Mapping[tuple[str, str], str], *, first: str = "", last: str = ""
) -> str:
    """Return a string of a given beginning or end whose ends are not those of one asked for."""
    while True:
        text = _string(rng)
        text = (first or text[:ENDS]) + text[ENDS:-ENDS] + (last or text[-ENDS:])
        if (text[:ENDS], text[-ENDS:]) not in asked:
            return text


def _different(rng: Random, number: int) -> list[str]:
    found: dict[str, None] = {}
    while len(found) < number:
        found["".join(rng.choices(string.ascii_uppercase, k=5))] = None
    return list(found)
