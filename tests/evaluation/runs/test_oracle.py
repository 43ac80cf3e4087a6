"""An oracle keeps what the answer needs, and is refused where there is none."""

from __future__ import annotations

import attrs
import pytest

from kvpolicy.evaluation.measures.catalogue import METRICS
from kvpolicy.evaluation.runs.entrant import Entrant
from kvpolicy.evaluation.runs.grid import Named
from kvpolicy.evaluation.runs.results import Results
from kvpolicy.task import Metric, Sample


@pytest.mark.parametrize("metric", ["exact_match", "perplexity"])
@pytest.mark.parametrize("question", ["inside", "outside"])
def test_an_oracle_keeps_what_the_answer_needs(make, shared, metric, question):
    task = Named(name="shared", samples=shared[:3], metric=METRICS[metric])
    grid = make(["random"], [24], tasks=[task], question=question, oracle=True)
    rows = grid.run(Results())
    scores = {}
    for row in rows:
        assert row.error is None
        scores.setdefault(row.entrant, []).append(row.score)
    by_title = {name: sum(each) / 3 for name, each in scores.items()}
    assert list(by_title) == ["full", "random", "oracle"]
    if metric == "exact_match":
        assert by_title == {"full": 1, "oracle": 1, "random": 0}
    else:
        assert by_title["oracle"] < by_title["random"] / 2
    held = {row.positions for row in rows if row.entrant == "oracle"}
    asked_outside = 3 if question == "outside" else metric == "perplexity"
    assert held == {24 + asked_outside}
    policy = next(row.policy for row in rows if row.entrant == "oracle")
    assert policy == {"scorer": {"name": "oracle"}, "recent": 0, "budget": 24}


def test_an_oracle_is_refused_where_a_text_is_evicted_all_the_time(make, samples, tmp_path):
    metric = Metric(name="perplexity", asks="stream")
    task = Named(name="text", samples=[Sample(name="1", context="ada amber oak")], metric=metric)
    grid = make([], [], tasks=[task])
    with_oracle = attrs.evolve(grid, entrants=[*grid.entrants, Entrant(name="oracle", budget=2)])
    full, refused = with_oracle.run(Results(tmp_path / "rows.jsonl"))
    assert full.error is None
    assert refused.error.startswith("InvalidValueError: there is no oracle for metric 'perplexity'")
