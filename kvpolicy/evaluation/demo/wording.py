"""A comparison in words: the cells of its table, its conclusion, and what to try next."""

from __future__ import annotations

from collections.abc import Sequence

from kvpolicy.evaluation.reports.comparison import Comparison, Standing
from kvpolicy.huggingface.report import readable_bytes

HEADINGS = ("policy", "budget", "right", "95 %", "kept", "bytes", "of full", "ms")
"""The columns of `table`."""

NOTES = (
    "right: answers that are right from the first word to the last; 95 %: the interval of that "
    "share. kept: tokens of the prompt that a key/value head holds when the answer begins, on "
    "average over layers and heads. bytes: what the cache of one prompt has allocated after the "
    "answer, room to grow included.",
    "ms: the mean time of a decoded token; the policies take turns, prompt by prompt. With a small "
    "model and a short prompt most of it is not attention: no benchmark.",
    "One task and one small model: elsewhere the recipes may rank otherwise.",
)


def percent(share: float) -> str:
    """Write a share for people.

    >>> percent(0.296)
    '30 %'
    """
    return f"{100 * share:.0f} %"


def table(comparison: Comparison) -> list[tuple[str, ...]]:
    """Return the rows of the table, a text for each of HEADINGS; the full cache comes first."""
    nothing = ("",) * (len(HEADINGS) - 3)
    rows = [(row.name, row.budget or 0, _cells(comparison, row)) for row in comparison.standings]
    refused = [(each.name, each.budget or 0, ("refused", *nothing)) for each in comparison.refusals]
    full = (comparison.full.name, "", *_cells(comparison, comparison.full))
    return [full, *((name, str(budget), *rest) for name, budget, rest in sorted(rows + refused))]


def _cells(comparison: Comparison, row: Standing) -> tuple[str, ...]:
    return (
        f"{row.correct} of {row.samples}",
        f"{100 * row.interval.low:.0f} to {100 * row.interval.high:.0f} %",
        f"{row.positions:.0f}",
        readable_bytes(row.nbytes),
        percent(comparison.share(row)),
        "" if row.milliseconds is None else f"{row.milliseconds:.1f}",
    )


def footnotes(comparison: Comparison) -> tuple[str, ...]:
    """Say why recipes refused a budget, and what the columns of the table mean."""
    names: dict[tuple[int | None, str], list[str]] = {}
    for each in comparison.refusals:
        names.setdefault((each.budget, each.reason), []).append(each.name)
    refusals = [
        f"refused by {listed(refusing)} at {budget}: {reason}"
        for (budget, reason), refusing in names.items()
    ]
    return (*refusals, *_protected(comparison), *NOTES)


def _protected(comparison: Comparison) -> list[str]:
    """Say how many positions recipes keep whatever their score, at each budget."""
    names: dict[tuple[tuple[int, int], ...], list[str]] = {}
    for name in comparison.names:
        counts = tuple((at, each.protected) for at, each in comparison.of(name).items())
        if any(count for _, count in counts):
            names.setdefault(counts, []).append(name)
    if not names:
        return []
    said = "; ".join(f"{listed(same)}: {_by_budget(counts)}" for counts, same in names.items())
    return [f"Positions that are kept whatever their score. {said}."]


def _by_budget(counts: Sequence[tuple[int, int]]) -> str:
    """Write counts by budget, or one count if all are the same.

    >>> _by_budget([(40, 32), (64, 32)]), _by_budget([(40, 20), (64, 32)])
    ('32', '20 at budget 40, 32 at 64')
    """
    (first, count), *others = counts
    if all(each == count for _, each in others):
        return str(count)
    rest = [f"{each} at {budget}" for budget, each in others]
    return ", ".join([f"{count} at budget {first}", *rest])


def conclusion(comparison: Comparison) -> str:
    """Say in one sentence what the smallest budget, and the first sufficient one, showed."""
    smallest = comparison.budgets[0]
    share = percent(smallest / comparison.tokens)
    return (
        f"With {smallest} of {comparison.tokens} positions ({share}), "
        f"{_ranking(comparison.at(smallest))}; the full cache gets {_score(comparison.full)} "
        f"right{_sufficient(comparison)}."
    )


def next_step(comparison: Comparison) -> str:
    """Name a command that takes the best recipe to a real model, and the recipes that do as well.

    The best is that of the smallest budget; of several, that with most right answers in all.
    """
    leaders = _leaders(comparison.at(comparison.budgets[0]))
    totals = {
        each.name: sum(one.correct for one in comparison.of(each.name).values()) for each in leaders
    }
    best, *others = [name for name, total in totals.items() if total == max(totals.values())]
    tied = f"    ({listed(others)}: as good here)" if others else ""
    return (
        f"kvpolicy generate --model PATH_OR_ID --recipe {best} --budget 1024 "
        f"--prompt-file FILE{tied}"
    )


def _leaders(ranked: tuple[Standing, ...]) -> list[Standing]:
    return [each for each in ranked if each.correct == ranked[0].correct]


def _ranking(ranked: tuple[Standing, ...]) -> str:
    best = _leaders(ranked)
    rest = ranked[len(best) :]
    verb = "gets" if len(best) == 1 else "each get"
    text = f"{listed([each.name for each in best])} {verb} {_score(ranked[0])} answers right"
    if not rest:
        return text
    second = _leaders(rest)
    each = " each" if len(second) > 1 else ""
    names = listed([each.name for each in second])
    return f"{text}, the most, before {names} with {rest[0].correct}{each}"


def _sufficient(comparison: Comparison) -> str:
    """Say at which budget a recipe first comes within the full cache's interval."""
    full = comparison.full
    if full.accuracy < 0.5:
        return ", so these prompts are too hard for the model to tell recipes apart"
    for budget in comparison.budgets:
        near = [row.name for row in comparison.at(budget) if row.accuracy >= full.interval.low]
        if near:
            verb = "comes" if len(near) == 1 else "come"
            return f", and {listed(near)} {verb} within its 95 % interval at {budget}"
    return ", and no recipe comes within its 95 % interval"


def _score(row: Standing) -> str:
    return f"{row.correct} of {row.samples}"


def listed(names: list[str]) -> str:
    """Join names for a sentence.

    >>> listed(["a", "b", "c"])
    'a, b and c'
    """
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
