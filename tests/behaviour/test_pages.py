"""Pages can be read in a browser: on a telephone and on a wide screen, in light and in dark."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest

import kvpolicy
from kvpolicy.evaluation import needle
from kvpolicy.evaluation.inspection.inspection import inspect
from kvpolicy.evaluation.inspection.page import page as inspection_page
from kvpolicy.evaluation.inspection.prompt import tokenized
from kvpolicy.evaluation.reports.page import page
from kvpolicy.evaluation.reports.summary import summary
from kvpolicy.evaluation.runs.row import Row

sys.path.insert(0, str(Path(__file__).parent))
import browser

WIDTHS = (390, 1600)
RECIPES = (
    *("adakv", "cam", "caote", "chunkkv", "criticalkv", "defensivekv", "expectedattention", "h2o"),
    *("keydiff", "knorm", "lacache", "lagkv", "layerdefensivekv", "lookm", "pyramidkv", "random"),
    *("restkv", "rkv", "snapkv", "streamingllm", "think", "tova"),
)
BUDGETS = (32, 64, 128, 0.25, 0.5)
RUN = {
    "model": {"name": "organisation/a-model-with-a-long-name-8b-instruct", "dtype": "float32"},
    "machine": {"packages": {"torch": "2.0", "transformers": "5.6"}},
}

needs_chromium = pytest.mark.skipif(
    browser.chromium() is None,
    reason="no Chromium is installed (apt-get install chromium); the tests in "
    "tests/evaluation/reports check the structure of pages without one",
)


def report(recipes, budgets, tasks, samples=2):
    """Return a page of made-up rows."""
    entrants = [("full", None), *((name, budget) for name in recipes for budget in budgets)]
    rows = [row for task in range(tasks) for who in entrants for row in _rows(task, *who, samples)]
    return page(summary(rows), baseline=entrants[-1][0], rows=rows, notices=["A notice. " * 20])


def _rows(task, entrant, budget, samples):
    drawn = random.Random(f"{task} {entrant} {budget}")
    name, metric, asks, names = [
        ("longbench_repobench-p(preset=official, folder=/a/folder/with/a/long/name)", "f1", "text",
         [str(number) for number in range(samples)]),
        ("haystack(shortest=1000, longest=17000)", "share_of_words", "text",
         [f"length {length}, depth {depth}" for length in range(1000, 18000, 1000)
          for depth in (0, 50, 100)]),
        ("perplexity(path=wiki.test.raw)", "perplexity", "stream",
         [str(number) for number in range(samples)]),
    ][min(task, 2) if task < 3 else 0]  # fmt: skip
    for sample in names:
        yield Row(
            key=f"{task} {sample} {entrant} {budget}",
            task=name if task < 3 else f"ruler_niah_multikey_{task}",
            metric=metric,
            asks=asks,
            sample=sample,
            question="inside",
            entrant=entrant,
            budget=budget,
            score=drawn.random() if asks == "text" else 1 + 5 * drawn.random(),
            curve=[1 + 2 * drawn.random() for _ in range(32)] if asks == "stream" else (),
            tokens=2048,
            positions=40.0,
            nbytes=int(4096 * 10 ** (3 * drawn.random())),
            footprint=drawn.randint(1, 100),
            full_footprint=100,
            first_seconds=0.1,
            token_seconds=0.01 + drawn.random() / 10,
            run=RUN,
        )


def assert_readable(html, folder, schemes=browser.SCHEMES):
    for scheme in schemes:
        found = browser.measured(html, WIDTHS, scheme, folder)
        for width in WIDTHS:
            seen, where = found[width], f"at {width} pixels, {scheme}"
            assert seen["dark"] == (scheme == "dark"), "the browser shows the wrong colours"
            assert seen["texts"] > 10, f"there is nothing to read {where}"
            assert seen["console"] == [], f"the browser complains {where}"
            assert seen["wide"] <= width, f"the page is wider than the screen {where}"
            assert seen["clipped"] == [], f"text is cut off {where}"
            assert seen["overlapping"] == [], f"text lies on text {where}"
            assert seen["pale"] == [], f"text is hard to tell from its ground {where}"


@pytest.mark.deep
@needs_chromium
def test_a_report_of_22_recipes_can_be_read(tmp_path):
    assert_readable(report(RECIPES, BUDGETS, tasks=3), tmp_path)


@needs_chromium
@pytest.mark.deep
def test_a_report_of_16_tasks_can_be_read(tmp_path):
    assert_readable(report(RECIPES, BUDGETS, tasks=16), tmp_path)


@needs_chromium
def test_a_report_of_one_row_can_be_read(tmp_path):
    assert_readable(report((), (), tasks=1, samples=1), tmp_path)


@needs_chromium
@pytest.mark.parametrize(
    ("body", "fault"),
    [
        ("<p style='width:700px'>wide</p>", "wider than the screen"),
        ("<p style='margin-left:-20px'>cut</p>", "text is cut off"),
        ("<p style='color:#777'>pale</p>", "hard to tell"),
        ("<script>missing()</script>", "complains"),
        (
            "<svg width='99' height='40'><text y='20'>over</text><text y='20'>lap</text></svg>",
            "lies",
        ),
    ],
    ids=["wide", "cut", "pale", "error", "overlap"],
)
def test_what_cannot_be_read_is_found(body, fault, tmp_path):
    text = "<p>" + "</p><p>".join("enough to read".split() * 5) + "</p>"
    html = f"<!doctype html><meta name='color-scheme' content='light dark'>{text}{body}"
    with pytest.raises(AssertionError, match=fault):
        assert_readable(html, tmp_path, schemes=("light",))


@needs_chromium
def test_an_inspection_can_be_read(tmp_path):
    model, tokenizer = needle.load()
    [question] = needle.generate_prompts(tokens=512, facts=24, count=1, seed=1)
    found = inspect(
        model,
        tokenizer,
        tokenized(tokenizer, question.text),
        kvpolicy.recipe("streamingllm", budget=40),
        answer=question.answer,
        max_new_tokens=4,
    )
    assert found.cause is not None
    assert_readable(inspection_page(found, name="streamingllm at 40", model="needle"), tmp_path)
