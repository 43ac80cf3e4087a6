"""Perplexity over position, for tasks that read a whole text."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import fmean

import attrs

from kvpolicy.budget import Budget, written
from kvpolicy.evaluation.reports.markdown import columns
from kvpolicy.evaluation.runs.row import Row


@attrs.frozen(kw_only=True)
class Curve:
    """The perplexity of one entrant on each stretch of the texts, in order.

    `ends` says where a stretch ends: in tokens if all texts are equally long (`in_tokens`), else as
    a share of the text.
    """

    entrant: str
    budget: Budget | None
    ends: tuple[float, ...]
    values: tuple[float, ...]
    in_tokens: bool


def curves(rows: Iterable[Row]) -> list[Curve]:
    """Return a curve for each entrant and budget whose rows have one; those of one task."""
    found: dict[tuple[str, Budget | None], list[Row]] = {}
    for row in rows:
        if row.curve and not row.failed:
            found.setdefault((row.entrant, row.budget), []).append(row)
    return [_curve(group) for group in found.values()]


def by_budget(found: Sequence[Curve]) -> list[tuple[str, list[Curve]]]:
    """Return the curves of each budget beside those of the full cache, and words for the budget."""
    full = [curve for curve in found if curve.budget is None]
    budgets = columns(curve.budget for curve in found)
    return [
        (
            "" if budget is None else f", at {written(budget)}",
            full + [curve for curve in found if None is not budget == curve.budget],
        )
        for budget in budgets
        if found
    ]


def _curve(rows: Sequence[Row]) -> Curve:
    count = min(len(row.curve) for row in rows)
    lengths = {row.tokens for row in rows}
    [length] = lengths if len(lengths) == 1 else [None]
    return Curve(
        entrant=rows[0].entrant,
        budget=rows[0].budget,
        ends=tuple((length or 1) * (place + 1) / count for place in range(count)),
        values=tuple(_perplexity([_part(row.curve, place, count) for row in rows])
                     for place in range(count)),
        in_tokens=length is not None,
    )  # fmt: skip


def _part(curve: Sequence[float], place: int, count: int) -> float:
    """Return the mean of what a curve has in stretch `place` of `count`."""
    start, stop = (each * len(curve) // count for each in (place, place + 1))
    return fmean(curve[start:stop])


def _perplexity(losses: Sequence[float]) -> float:
    mean = fmean(losses)
    return math.exp(mean) if mean < 700 else math.inf
