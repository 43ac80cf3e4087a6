"""InfiniteBench's synthetic samples, as its data/construct_synthetic_dataset.py makes them (MIT).

A generator returns the fields of a line of InfiniteBench's file. Its random numbers are others: the
authors used no seed. The sizes are those of the files on the hub, which the averages of tokens in
the authors' README fit. Their script has other ones for three tasks: 60,000 numbers in math_find,
30,000 in math_calc, and 550 functions in code_run.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from random import Random
from typing import Any, TypeAlias

import attrs

from kvpolicy.evaluation.tasks.ruler.niah import NOISE

Line: TypeAlias = dict[str, Any]
"""The fields `context`, `input` and `answer` of a line."""

DEPTHS = 59
"""How many places of a needle there are, from the beginning of the noise to its end."""
CALLS = (2, 4, 6, 8, 10)
"""How many functions call one another until the value of a function is known."""
KINDS = (
    *("largest", "second largest", "third largest"),
    *("smallest", "second smallest", "third smallest", "median"),
)
"""The numbers that are looked for in a list."""


@attrs.frozen(kw_only=True)
class Generator:
    """Writes the samples of a task.

    `write` takes a source of random numbers, the size of the context in its units, and which of the
    `variants` is wanted. InfiniteBench has `samples` of them, each with a context of `size`.
    """

    write: Callable[[Random, int, int], Line]
    size: int
    samples: int
    variants: int


def passkey(rng: Random, size: int, variant: int) -> Line:
    """Hide a key of five digits in `size` lines of noise."""
    key = _digits(rng)
    needle = f"The pass key is {key}. Remember it. {key} is the pass key."
    return _hidden(needle, size, variant) | {"input": "What is the pass key?", "answer": key}


def number_string(rng: Random, size: int, variant: int) -> Line:
    """Hide ten digits, some of them repeated, in `size` lines of noise."""
    digits = list(_digits(rng))
    for length in range(5, 10):
        place = rng.randrange(length)
        digits.insert(place, digits[place])
    key = "".join(digits)
    needle = f"The sequence of digits is {key}. Remember it. {key} is the sequence of digits."
    return _hidden(needle, size, variant) | {
        "input": "What is the sequence of digits?",
        "answer": key,
    }


def kv_retrieval(rng: Random, size: int, variant: int) -> Line:
    """Ask for the value of one of `size` keys of a JSON object; keys and values are UUIDs."""
    pairs = [(_uuid(rng), _uuid(rng)) for _ in range(size)]
    key, value = pairs[variant * size // KV_RETRIEVAL.variants]
    listed = ", ".join(f'"{name}": "{text}"' for name, text in pairs)
    return {
        "context": f"JSON data:\n{{{listed}}}",
        "input": f'\nKey: "{key}"\nThe value associated with the specified key is: ',
        "answer": value,
    }


def math_find(rng: Random, size: int, variant: int) -> Line:
    """Ask for the largest number of a list, say; the numbers lie between 0 and 99."""
    kind = KINDS[variant]
    low, high = 0, 99
    if "smallest" in kind or (kind == "median" and rng.random() > 0.5):
        low = rng.randint(0, 19)
    else:
        high = rng.randint(79, 99)
    numbers = rng.choices(range(low, high + 1), k=size)
    return {
        "context": str(numbers),
        "input": "You should answer with only one number, no other words. "
        f"The {kind} number of the list is: ",
        "answer": _found(kind, numbers),
    }


def math_calc(rng: Random, size: int, variant: int) -> Line:
    """Write a sum of `size` numbers whose values on the way lie between 0 and 99."""
    value = rng.randint(0, 99)
    expression, values = [str(value)], []
    for _ in range(size - 1):
        number = rng.randint(0, 99)
        if rng.random() > 0.5:
            number = number if value + number <= 99 else rng.randint(0, 99 - value)
            expression.append(f"+ {number}")
            value += number
        else:
            number = number if number <= value else rng.randint(0, value)
            expression.append(f"- {number}")
            value -= number
        values.append(value)
    asked = "The value of the numerical expression is: "
    return {"context": " ".join(expression), "input": asked, "answer": [values]}


def code_run(rng: Random, size: int, variant: int) -> Line:
    """Write about `size` functions that call one another, and ask for the value of one.

    Raises ValueError if there are too few for the calls.
    """
    calls = CALLS[variant]
    numbers = rng.sample(range(1, 2 * size + 1), size // calls * calls)
    levels = [numbers[level::calls] for level in range(calls)]
    if not levels[0]:
        raise ValueError(f"{size} functions are too few for {calls} calls")
    steps: dict[int, tuple[int | None, int]] = {}
    for level, names in enumerate(levels):
        for name in names:
            called = rng.choice(levels[level + 1]) if level + 1 < calls else None
            steps[name] = called, rng.randint(-12, 17)
    asked, given = rng.choice(levels[0]), rng.randint(-10, 10)
    code = "".join(f"def func_{name}(x):\n{_body(*steps[name])}\n\n" for name in sorted(steps))
    return {
        "context": f"\nHere is the content of functions_module.py:\n\n{code}",
        "input": "Please give me the exact number of the return value of "
        f"func_{asked}({given}). Your response should end with the sentence "
        "'The return value is:'.",
        "answer": _value(steps, asked, given),
    }


def _hidden(needle: str, size: int, variant: int) -> Line:
    place = variant * size // (DEPTHS - 1)
    noise = f"{NOISE}\n"
    return {"context": f"{noise * place}{needle}\n{noise * (size - place)}"}


def _digits(rng: Random) -> str:
    return "".join(str(rng.randint(0, 9)) for _ in range(5))


def _uuid(rng: Random) -> str:
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))


def _found(kind: str, numbers: list[int]) -> int | float:
    """Return the number that is looked for; equal numbers share a rank."""
    if kind == "median":
        ordered, middle = sorted(numbers), len(numbers) // 2
        return ordered[middle] if len(ordered) % 2 else sum(ordered[middle - 1 : middle + 1]) / 2
    ranked = sorted(set(numbers), reverse=kind.endswith("largest"))
    rank = {"second": 1, "third": 2}.get(kind.split()[0], 0)
    if len(ranked) <= rank:
        raise ValueError(f"{len(numbers)} numbers have no {kind}")
    return ranked[rank]


def _body(called: int | None, added: int) -> str:
    value = "x" if called is None else f"func_{called}(x)"
    sign = "" if added == 0 else f" {'+' if added > 0 else '-'} {abs(added)}"
    return f"    return {value}{sign}"


def _value(steps: Mapping[int, tuple[int | None, int]], name: int | None, value: int) -> int:
    while name is not None:
        name, added = steps[name]
        value += added
    return value


_NEEDLE = {"size": 5220, "samples": 590, "variants": DEPTHS}
KV_RETRIEVAL = Generator(write=kv_retrieval, size=2500, samples=500, variants=500)
GENERATORS: Mapping[str, Generator] = {
    "passkey": Generator(write=passkey, **_NEEDLE),
    "number_string": Generator(write=number_string, **_NEEDLE),
    "kv_retrieval": KV_RETRIEVAL,
    "math_find": Generator(write=math_find, size=30000, samples=350, variants=len(KINDS)),
    "math_calc": Generator(write=math_calc, size=15000, samples=50, variants=1),
    "code_run": Generator(write=code_run, size=4400, samples=400, variants=len(CALLS)),
}
