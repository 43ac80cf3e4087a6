"""What is written has the counts and follows the rules of InfiniteBench's own generators."""

from __future__ import annotations

import json
import re
from collections import Counter
from itertools import pairwise
from random import Random

import pytest

from kvpolicy.evaluation.tasks.infinitebench.generators import DEPTHS, GENERATORS, KINDS
from kvpolicy.evaluation.tasks.ruler.niah import NOISE


def written(task, size, variant=0, seed=0):
    return GENERATORS[task].write(Random(seed), size, variant)


def test_the_numbers_of_samples_and_the_sizes_are_infinitebenchs():
    found = {task: (each.samples, each.size) for task, each in GENERATORS.items()}
    assert found == {
        "passkey": (590, 5220),
        "number_string": (590, 5220),
        "kv_retrieval": (500, 2500),
        "math_find": (350, 30000),
        "math_calc": (50, 15000),
        "code_run": (400, 4400),
    }
    assert DEPTHS * 10 == 590
    assert len(KINDS) * 50 == 350


@pytest.mark.parametrize(
    ("task", "megabytes"),
    [
        ("passkey", 277),
        ("number_string", 277),
        ("kv_retrieval", 105),
        ("math_find", 41.3),
        ("math_calc", 6.31),
        ("code_run", 83.4),
    ],
)
def test_all_samples_are_as_large_as_the_file_on_the_hub(task, megabytes):
    generator, rng = GENERATORS[task], Random(0)
    lines = [
        generator.write(rng, generator.size, place * generator.variants // 10)
        for place in range(10)
    ]
    size = sum(len(json.dumps(line | {"id": 0, "options": []})) + 1 for line in lines) / 10
    assert size * generator.samples == pytest.approx(megabytes * 1e6, rel=0.02)


@pytest.mark.parametrize("task", ["passkey", "number_string"])
def test_the_needle_stands_after_every_90th_line_of_noise(task):
    size = GENERATORS[task].size
    for variant in range(DEPTHS):
        lines = written(task, size, variant)["context"].split("\n")
        assert lines.pop() == ""
        assert len(lines) == size + 1
        place = variant * 90
        assert "Remember it." in lines.pop(place)
        assert set(lines) == {NOISE}


def test_a_key_has_five_digits_and_is_named_twice():
    line = written("passkey", 58, 1)
    key = line["answer"]
    assert re.fullmatch(r"\d{5}", key)
    assert f"\nThe pass key is {key}. Remember it. {key} is the pass key.\n" in line["context"]
    assert line["input"] == "What is the pass key?"


def test_a_string_of_ten_digits_repeats_digits_next_to_each_other():
    for seed in range(20):
        line = written("number_string", 3, seed=seed)
        key = line["answer"]
        assert re.fullmatch(r"\d{10}", key)
        assert sum(first == second for first, second in pairwise(key)) >= 5
        said = f"The sequence of digits is {key}. Remember it. {key} is the sequence of digits."
        assert said in line["context"]


@pytest.mark.parametrize(("variant", "asked"), [(0, 0), (1, 5), (250, 1250), (499, 2495)])
def test_the_key_that_is_asked_for_moves_through_the_pairs(variant, asked):
    line = written("kv_retrieval", 2500, variant)
    start, _, text = line["context"].partition("\n")
    pairs = list(json.loads(text).items())
    assert (start, len(pairs)) == ("JSON data:", 2500)
    key, value = pairs[asked]
    assert line["answer"] == value
    assert line["input"] == f'\nKey: "{key}"\nThe value associated with the specified key is: '
    assert all(re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", key) for key, _ in pairs)


@pytest.mark.parametrize(("variant", "kind"), list(enumerate(KINDS)))
def test_a_number_is_found_by_its_rank(variant, kind):
    for seed in range(10):
        line = written("math_find", 301, variant, seed)
        numbers = json.loads(line["context"])
        ranked = sorted(set(numbers))
        expected = {
            "largest": ranked[-1],
            "second largest": ranked[-2],
            "third largest": ranked[-3],
            "smallest": ranked[0],
            "second smallest": ranked[1],
            "third smallest": ranked[2],
            "median": sorted(numbers)[150],
        }
        assert line["answer"] == expected[kind]
        assert line["input"].endswith(f" The {kind} number of the list is: ")
        assert len(numbers) == 301
        assert 0 <= min(numbers) <= max(numbers) <= 99


def test_the_bound_on_the_side_that_is_asked_for_is_random():
    largest = {max(json.loads(written("math_find", 2000, 0, seed)["context"])) for seed in range(9)}
    smallest = {
        min(json.loads(written("math_find", 2000, 3, seed)["context"])) for seed in range(9)
    }
    assert len(largest) > 3 < len(smallest)
    assert min(largest) >= 79
    assert max(smallest) <= 19


def test_the_median_of_an_even_list_lies_between_its_middle_numbers():
    for seed in range(9):
        line = written("math_find", 4, 6, seed)
        numbers = sorted(json.loads(line["context"]))
        assert line["answer"] == (numbers[1] + numbers[2]) / 2


def test_the_values_of_a_sum_stay_between_0_and_99():
    line = written("math_calc", 500)
    first, *steps = re.split(r" (?=[+-])", line["context"])
    assert len(steps) == 499
    values, value = [], int(first)
    for step in steps:
        value += int(step.replace(" ", ""))
        values.append(value)
    assert line["answer"] == [values]
    assert 0 <= min(values) <= max(values) <= 99
    assert {step[0] for step in steps} == {"+", "-"}


@pytest.mark.parametrize(("variant", "calls"), [(0, 2), (1, 4), (2, 6), (3, 8), (4, 10)])
def test_the_value_of_a_function_is_that_of_its_code(variant, calls):
    line = written("code_run", 550, variant)
    name, given = re.search(r"(func_\d+)\((-?\d+)\)", line["input"]).groups()
    code = line["context"].partition(":\n\n")[2]
    names: dict[str, object] = {}
    exec(code, names)  # the code that the prompt shows
    assert names[name](int(given)) == line["answer"]
    functions = re.findall(r"def func_(\d+)", code)
    assert len(functions) == 550 // calls * calls
    assert functions == sorted(set(functions), key=int)
    assert max(map(int, functions)) <= 1100
    assert _depth(code, name) == calls
    assert -10 <= int(given) <= 10


def _depth(code, name):
    body = re.search(rf"def {name}\(x\):\n    return (func_\d+)?", code)
    return 1 + _depth(code, body[1]) if body[1] else 1


def test_what_a_function_adds_lies_between_minus_12_and_17():
    code = written("code_run", 550)["context"]
    added = Counter(int(sign + number) for sign, number in re.findall(r" ([+-]) (\d+)\n", code))
    assert (min(added), max(added)) == (-12, 17)
    assert 0 not in added
    assert re.search(r"return (x|func_\d+\(x\))\n", code)


def test_too_few_functions_for_the_calls_are_refused():
    with pytest.raises(ValueError, match="9 functions are too few for 10 calls"):
        written("code_run", 9, 4)


def test_numbers_without_a_third_rank_are_refused():
    with pytest.raises(ValueError, match="2 numbers have no third largest"):
        written("math_find", 2, 2)
