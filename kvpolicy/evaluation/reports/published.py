"""Published scores beside ours, where model, tasks, budget and protocol are the same."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib.resources import files
from statistics import fmean
from typing import Any

import attrs

from kvpolicy.budget import Budget
from kvpolicy.composition import recipe
from kvpolicy.errors import KvpolicyError
from kvpolicy.evaluation.reports.loading import model_of
from kvpolicy.evaluation.runs.entrant import FULL
from kvpolicy.evaluation.runs.row import Row

_NAME = re.compile(r"(?P<task>[^(]*)(?:\((?P<options>.*)\))?$")


@attrs.frozen(kw_only=True)
class Published:
    """A published score and ours, both from 0 to 100, and where the published one stands."""

    benchmark: str
    entrant: str
    budget: Budget | None
    ours: float
    theirs: float
    source: str


def published(rows: Sequence[Row]) -> list[Published]:
    """Return the published scores that these rows can be compared with.

    That needs the same model; all tasks of the benchmark with the same options, every sample of
    them, none failed; the question in the same place; prompts that were cut to the same length; and
    the same budget and settings of the policy. The authors keep positions for each query head. On a
    model whose query heads share keys and values their budgets are other budgets than ours, so only
    scores of the full cache are compared there.
    """
    return [
        found
        for table in _tables()
        if (ours := _rows_of(table, rows))
        for score in table["scores"]
        if (found := _compared(table, score, ours))
    ]


@cache
def _tables() -> Sequence[Mapping[str, Any]]:
    text = files(__package__).joinpath("published.json").read_text(encoding="utf-8")
    tables: Sequence[Mapping[str, Any]] = json.loads(text)["tables"]
    return tables


def _rows_of(table: Mapping[str, Any], rows: Iterable[Row]) -> list[tuple[str, Row]]:
    """Return the rows of a table's model and tasks, each with the plain name of its task."""
    models = {name.lower() for name in table["models"]}
    found = []
    for row in rows:
        name, options = _parts(row.task)
        if (
            name in table["tasks"]
            and table["options"].items() <= options.items()
            and options.get("extended", "False") == "False"
            and row.question == table["question"]
            and model_of(row).rstrip("/").rpartition("/")[2].lower() in models
        ):
            found.append((name, row))
    return found


def _parts(task: str) -> tuple[str, dict[str, str]]:
    """Return a task's name and options.

    >>> _parts("ruler_vt(length=4096, new_tokens=64)")
    ('ruler_vt', {'length': '4096', 'new_tokens': '64'})
    """
    found = _NAME.match(task)
    if found is None:
        return task, {}
    pairs = (each.partition("=") for each in (found["options"] or "").split(", ") if each)
    return found["task"], {option: value for option, _, value in pairs}


def _compared(
    table: Mapping[str, Any], score: Mapping[str, Any], rows: Iterable[tuple[str, Row]]
) -> Published | None:
    name, budget = score["recipe"], score["budget"]
    if name != FULL and table["grouped_heads"]:
        return None
    mine = [(task, row) for task, row in rows if (row.entrant, row.budget) == (name, budget)]
    if not _is_complete(table, mine) or not _is_policy(score, [row for _, row in mine]):
        return None
    return Published(
        benchmark=table["benchmark"],
        entrant=name,
        budget=budget,
        ours=100 * fmean(_mean(task, mine) for task in table["tasks"]),
        theirs=score["score"],
        source=table["source"],
    )


def _is_complete(table: Mapping[str, Any], rows: Sequence[tuple[str, Row]]) -> bool:
    """Whether every sample of every task has a score, and prompts were cut as they were there."""
    for task, count in table["tasks"].items():
        if len({row.sample for name, row in rows if name == task and not row.failed}) != count:
            return False
    low, high = table["longest_prompt"]
    return bool(low <= max(row.tokens or 0 for _, row in rows) <= high)


def _is_policy(score: Mapping[str, Any], rows: Iterable[Row]) -> bool:
    """Whether all rows are of the policy that the score is of."""
    if score["recipe"] == FULL:
        return True
    try:
        policy = recipe(score["recipe"], budget=score["budget"], **score.get("options", {}))
    except KvpolicyError:
        return False
    return all(row.policy == policy.to_dict() for row in rows)


def _mean(task: str, rows: Iterable[tuple[str, Row]]) -> float:
    return fmean(row.score for name, row in rows if name == task and row.score is not None)
