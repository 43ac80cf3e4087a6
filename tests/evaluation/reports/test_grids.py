"""Scores by length and depth come from the names of samples."""

from __future__ import annotations

import pytest

from kvpolicy.evaluation.reports.grids import grids
from kvpolicy.evaluation.tasks.haystack import HaystackTask


def test_each_place_has_the_mean_of_its_scores(make_row):
    rows = [
        make_row("length 200, depth 0", score=1.0),
        make_row("length 100, depth 50", score=0.0),
        make_row("length 100, depth 50", score=0.5),
        make_row("length 200, depth 50", "snapkv", 8, None, error="failed"),
    ]
    full, snapkv = grids(rows)
    assert (full.lengths, full.depths) == ((100, 200), (0, 50))
    assert full.scores == ((None, 1.0), (0.25, None))
    assert full.mean == pytest.approx(0.625)
    assert snapkv.scores == ((None,),)
    assert snapkv.mean is None


def test_samples_of_other_tasks_make_no_grid(rows):
    assert grids(rows) == []


def test_the_haystack_task_names_its_samples_so(make_row):
    class Tokenizer:
        """A token for each character."""

        def __call__(self, text, add_special_tokens):
            return {"input_ids": list(map(ord, text))}

        def decode(self, ids):
            return "".join(map(chr, ids))

    task = HaystackTask(shortest=400, longest=600, step=200, num_depths=2)
    [grid] = grids([make_row(sample.name) for sample in task.samples(Tokenizer())])
    assert (grid.lengths, grid.depths) == ((400, 600), (0, 100))


def test_a_narrowed_grid_averages_neighbours(make_row):
    rows = [make_row(f"length {each}, depth 0", score=float(each % 2)) for each in range(1, 157)]
    [grid] = grids(rows)
    narrow = grid.narrowed(16)
    assert len(narrow.lengths) == 16
    assert narrow.lengths[-1] == 156
    assert narrow.scores[0][0] == 0.5
    assert grid.narrowed(200) == grid
