"""The parts of the page on plugins keep what parts of their kind promise."""

import re
from pathlib import Path

import pytest

from kvpolicy.evaluation import needle
from kvpolicy.testing.promises import PROMISES

PAGE = (Path(__file__).parents[2] / "docs" / "write-a-plugin.md").read_text("utf-8")
PARTS = re.findall(r"^class (\w+(Scorer|Smoother|Allocator)):$", PAGE, re.MULTILINE)


@pytest.fixture(scope="module")
def shown():
    """What the code of the page defines."""
    model, tokenizer = needle.load()
    prompt = needle.generate_prompts(tokens=96, facts=4, count=1, seed=0)[0].text
    found = {"model": model, "inputs": tokenizer(prompt, return_tensors="pt")}
    for code in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(compile(code, "write-a-plugin.md", "exec"), found)
    return found


def test_each_of_three_kinds_is_shown():
    assert {kind for _, kind in PARTS} == {"Scorer", "Smoother", "Allocator"}


@pytest.mark.parametrize(("name", "kind"), PARTS)
def test_the_part_keeps_each_promise_on_an_example(name, kind, shown):
    for promise in PROMISES[kind.lower()]:
        promise.quickened(0)(shown[name]())
