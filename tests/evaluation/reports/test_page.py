"""The page and the Markdown hold every figure, and need nothing beside themselves."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from kvpolicy.evaluation.reports.markdown import markdown
from kvpolicy.evaluation.reports.page import page, title
from kvpolicy.evaluation.reports.summary import summary


class Reader(HTMLParser):
    """Collects the text of each table cell, and checks that elements are closed in order."""

    VOID = frozenset({"meta", "wbr"})

    def __init__(self):
        super().__init__()
        self.open, self.tables, self.text = [], [], ""

    def handle_starttag(self, tag, attributes):
        if tag in self.VOID:
            return
        self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("th", "td"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if {"th", "td"} & set(self.open):
            self.tables[-1][-1][-1] += " ".join(data.split())


@pytest.fixture
def read(rows):
    reader = Reader()
    reader.feed(page(summary(rows), baseline="full", rows=rows))
    assert not reader.open
    return reader


def test_the_first_table_has_a_line_for_each_recipe_and_a_column_for_each_budget(read):
    assert [[re.match(r"[\d.]{5}|.*", cell)[0] for cell in line] for line in read.tables[0]] == [
        ["policy", "64", "25 %"],
        ["full", "1.000", "1.000"],
        ["restkv", "0.800", "0.500"],
        ["snapkv", "0.500", "-"],
    ]


def test_under_a_score_are_its_interval_and_the_difference_in_words_too(read):
    found = read.tables[0][3][1]
    assert found.startswith("0.5000.237 to 0.763▼worse-0.500 (-0.8")


def test_the_second_table_has_all_figures(read):
    line = read.tables[1][2]
    assert line[:4] == ["restkv", "64", "0.800", "0.490 to 0.943"]
    assert line[4].startswith("-0.200 (-0.5")
    assert line[5:] == ["10", "40", "1.0 KiB", "50.0 %", "500.0 ms", "2.0 ms"]


def test_the_model_and_the_versions_are_named(read):
    assert "org/model (torch.float32), 10 samples, question inside" in read.text
    assert "torch 2.0" in read.text


def test_the_best_recipe_of_a_budget_is_bold_and_the_full_cache_never_is(rows):
    found = page(summary(rows), baseline="full", rows=rows)
    assert re.findall(r'class="best">([\d.]+)<', found) == ["0.800"]


def test_the_page_needs_nothing_beside_itself(rows):
    found = page(summary(rows), baseline="full", rows=rows)
    assert not re.search(r"https?:|src=|<link|<script|@import|url\((?!#)", found)


def test_pictures_hold_text_and_say_what_they_show(rows):
    found = page(summary(rows), baseline="full", rows=rows)
    pictures = re.findall(r"<svg.*?</svg>", found, re.DOTALL)
    assert len(pictures) == 4
    for picture in pictures:
        assert re.search(r'role="img" aria-label="needles: f1 over [^"]+\."><title>', picture)
        assert re.search(r"<text [^>]*>[^<]+</text>", picture)
    assert {"restkv", "snapkv", "full"} <= set(re.findall(r">([^<]+)</text>", pictures[0]))


def test_every_table_has_headings_with_a_scope_and_every_place_to_scroll_a_name(rows):
    found = page(summary(rows), baseline="full", rows=rows)
    assert not re.search(r"<th(?! scope=)[ >]", found)
    regions = re.findall(r'<div class="scroll"[^>]*>', found)
    assert len(regions) == found.count("<table")
    assert all('tabindex="0"' in each and "aria-label=" in each for each in regions)


def test_notices_are_shown(rows):
    found = page(summary(rows), baseline="full", rows=rows, notices=["The file was <cut>."])
    assert "The file was &lt;cut&gt;." in found


def test_a_haystack_has_tables_of_scores_by_length_and_depth(make_row):
    rows = [
        make_row(f"length {length}, depth 50", entrant, budget, score)
        for entrant, budget, score in (("full", None, 1.0), ("restkv", 64, 0.25))
        for length in (500, 1000)
    ]
    reader = Reader()
    reader.feed(page(summary(rows), baseline="full", rows=rows))
    assert [["depth", "500", "1k"], ["50", "25", "25"]] in reader.tables


def test_several_tasks_have_an_overview_and_links(rows, make_row):
    other = [make_row(row.sample, row.entrant, row.budget, row.score, task="b") for row in rows]
    found = page(summary([*rows, *other]), baseline="full", rows=[*rows, *other])
    assert "All tasks" in found
    targets = re.findall(r'href="#([^"]+)"', found)
    assert len(targets) >= 2
    assert all(f'id="{target}"' in found for target in targets)


def test_names_and_errors_are_text_and_no_markup(make_row):
    rows = [make_row("1"), make_row("1", "<b>|", 8, None, error="<script>no")]
    found = page(summary(rows), baseline="full", rows=rows)
    assert "<script>" not in found
    assert "&lt;script&gt;no" in found
    assert r"<b>\|" in markdown(summary(rows), baseline="full")


def test_a_perplexity_has_no_strip_and_says_that_lower_is_better(make_row):
    rows = [make_row("1", score=2.0, asks="likelihood")]
    found = page(summary(rows), baseline="full", rows=rows)
    assert "lower is better" in found
    assert 'class="strip"' not in found


def test_the_markdown_has_both_tables(rows):
    text = markdown(summary(rows), baseline="full")
    assert "| policy | 64 | 25 % |\n| --- | ---: | ---: |\n" in text
    assert "| restkv | 0.800 (0.490 to 0.943) | 0.500 (0.500 to 0.500) |" in text
    assert "| snapkv | 64 | 0.500 |" in text


def test_the_markdown_has_one_title(rows):
    text = markdown(summary(rows), baseline="full", title=title(rows))
    assert [line for line in text.splitlines() if line.startswith("# ")] == [f"# {title(rows)}"]
    assert text.startswith("# kvpolicy evaluation: ")


def test_further_figures_of_a_metric_have_a_table(make_row):
    rows = [make_row("1", parts={"no_comma": 0.25}), make_row("2", parts={"no_comma": 0.5})]
    reader = Reader()
    reader.feed(page(summary(rows), baseline="full", rows=rows))
    assert reader.tables[-1] == [["policy", "budget", "no_comma"], ["full", "-", "0.375"]]
    assert "| full | - | 0.375 |" in markdown(summary(rows), baseline="full")


def test_no_rows_make_an_empty_page():
    assert "No rows." in page([], baseline="full", rows=[])


def test_a_text_that_was_read_has_its_perplexity_over_position(make_row):
    rows = [
        make_row("1", entrant, budget, 1.5, asks="stream", curve=(1.0, 2.0), tokens=64)
        for entrant, budget in (("full", None), ("restkv", 8))
    ]
    found = page(summary(rows), baseline="full", rows=rows)
    assert "perplexity over position, at 8" in found
    assert ">position in tokens</text>" in found
