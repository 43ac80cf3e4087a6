"""Adds rows up: for each entrant and task a figure, its interval, and how far a baseline is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

import attrs

from kvpolicy.budget import Budget, plain
from kvpolicy.errors import InvalidValueError, ResultsError, shown, suggest
from kvpolicy.evaluation.measures.bootstrap import Estimate, Scores, difference, estimate
from kvpolicy.evaluation.measures.interval import wilson_interval
from kvpolicy.evaluation.measures.sets import OUTCOMES, SET_FIGURES
from kvpolicy.evaluation.runs.entrant import FULL, Entrant
from kvpolicy.evaluation.runs.row import Row
from kvpolicy.task import PERPLEXITIES


@attrs.frozen(kw_only=True)
class Cell:
    """One entrant on one task.

    `estimate` is the figure over the samples that it answered, with its 95 % interval: Wilson's
    where every score is 0 or 1 and no two samples share a text, else the bootstrap's over texts. A
    metric of `SET_FIGURES` has a figure of all samples together, and the bootstrap's interval.
    `difference` is the figure minus the baseline's, over the samples that both answered; None for
    the baseline, and where there are no such samples. `errors` counts the samples without a score.
    The other figures are means over samples; `footprint` is a share of the full cache's. `parts`
    are the means of further figures of a metric, such as each kind of instruction, over the samples
    that have them.
    """

    task: str
    metric: str
    entrant: str
    budget: Budget | None
    larger_is_better: bool
    samples: int
    errors: int
    error: str | None
    estimate: Estimate | None
    difference: Estimate | None
    positions: float | None
    nbytes: float | None
    footprint: float | None
    first_seconds: float | None
    token_seconds: float | None
    parts: Mapping[str, float] = attrs.field(factory=dict)

    @property
    def title(self) -> str:
        """The entrant and its budget."""
        return Entrant(name=self.entrant, budget=self.budget).title

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as plain JSON data."""
        data = attrs.asdict(self, recurse=False) | {"budget": plain(self.budget)}
        return data | {name: _plain(data[name]) for name in ("estimate", "difference")}


def summary(rows: Iterable[Row], *, baseline: str = FULL) -> list[Cell]:
    """Return a cell for each entrant, budget and task, in the order of the rows.

    `baseline` is an entrant's name. One that has budgets is compared at the same budget.

    >>> rows = [
    ...     Row(key=name + sample, task="t", metric="f1", sample=sample, question="inside",
    ...         entrant=name, budget=budget, score=score)
    ...     for name, budget, score in (("full", None, 1.0), ("snapkv", 64, 0.75))
    ...     for sample in "ab"]
    >>> [(cell.title, cell.estimate.value, cell.difference) for cell in summary(rows)]
    [('full', 1.0, None), ('snapkv at 64', 0.75, Estimate(value=-0.25, interval=Interval(...)))]

    Raises InvalidValueError if no row is the baseline's, and ResultsError if a row lacks the parts
    that its metric is made of.
    """
    groups: dict[tuple[str, str, Budget | None], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.task, row.entrant, row.budget), []).append(row)
    names = list(dict.fromkeys(entrant for _, entrant, _ in groups))
    if groups and baseline not in names:
        raise InvalidValueError(
            f"no rows of the baseline {shown(baseline)}.{suggest(baseline, names)} There are rows "
            f"of: {', '.join(names)}."
        )
    return [
        _cell(found, groups.get((task, baseline, None)) or groups.get((task, baseline, budget)))
        for (task, _, budget), found in groups.items()
    ]


def by_task(cells: Iterable[Cell]) -> dict[str, list[Cell]]:
    """Return the cells of each task, in their order."""
    tasks: dict[str, list[Cell]] = {}
    for cell in cells:
        tasks.setdefault(cell.task, []).append(cell)
    return tasks


def _plain(found: Estimate | None) -> dict[str, Any] | None:
    if found is None:
        return None
    return {"value": found.value, "interval": found.interval and list(found.interval)}


def _cell(rows: Sequence[Row], baseline: Sequence[Row] | None) -> Cell:
    scored = [row for row in rows if row.score is not None]
    failed = [row for row in rows if row.score is None]
    first = rows[0]
    footprints = [
        row.footprint / row.full_footprint
        for row in scored
        if row.footprint is not None and row.full_footprint
    ]
    return Cell(
        task=first.task,
        metric=first.metric,
        entrant=first.entrant,
        budget=first.budget,
        larger_is_better=not _is_perplexity(first),
        samples=len(scored),
        errors=len(failed),
        error=failed[0].error if failed else None,
        estimate=_estimate(scored) if scored else None,
        difference=None if baseline in (None, rows) else _difference(scored, baseline or ()),
        positions=_mean(row.positions for row in scored),
        nbytes=_mean(row.nbytes for row in scored),
        footprint=_mean(footprints),
        first_seconds=_mean(row.first_seconds for row in scored),
        token_seconds=_mean(row.token_seconds for row in scored),
        parts=_parts(scored),
    )


def _parts(rows: Sequence[Row]) -> dict[str, float]:
    names = sorted({name for row in rows for name in row.parts})
    return {name: fmean(row.parts[name] for row in rows if name in row.parts) for name in names}


def _estimate(rows: Sequence[Row]) -> Estimate:
    scores = _scores(rows)
    found = estimate(scores)
    if scores.of_set or _is_perplexity(rows[0]) or scores.drawn() < len(rows):
        return found
    if not set(scores.scores) <= {0.0, 1.0}:
        return found
    return Estimate(found.value, wilson_interval(round(sum(scores.scores)), len(rows)))


def _difference(rows: Sequence[Row], baseline: Sequence[Row]) -> Estimate | None:
    theirs = {row.sample: row for row in baseline if row.score is not None}
    pairs = [(row, theirs[row.sample]) for row in rows if row.sample in theirs]
    if not pairs:
        return None
    mine, others = zip(*pairs, strict=True)
    return difference(_scores(mine), _scores(others))


def _scores(rows: Sequence[Row]) -> Scores:
    texts = [row.context or row.sample for row in rows]
    found = Scores(
        [row.score for row in rows if row.score is not None],
        [row.weight for row in rows],
        _is_perplexity(rows[0]),
        # Of one text, such as GLUE's examples, other questions are all that can be drawn.
        texts if len(set(texts)) > 1 else (),
    )
    if (of_set := SET_FIGURES.get(rows[0].metric)) is None:
        return found
    return found._replace(counts=[_outcome(row) for row in rows], of_set=of_set)


def _outcome(row: Row) -> list[float]:
    if missing := [name for name in OUTCOMES if name not in row.parts]:
        raise ResultsError(
            f"a row of task {shown(row.task)}, sample {shown(row.sample)}, has no part "
            f"{missing[0]!r}, of which {row.metric} is made. Leave the row out, or evaluate the "
            "sample again."
        )
    return [row.parts[name] for name in OUTCOMES]


def _is_perplexity(row: Row) -> bool:
    return row.asks in PERPLEXITIES


def _mean(figures: Iterable[float | None]) -> float | None:
    found = [figure for figure in figures if figure is not None]
    return fmean(found) if found else None
