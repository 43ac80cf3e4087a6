"""A comparison in words: the cells of its table, its conclusion, and what to try next."""

from __future__ import annotations

from kvpolicy.evaluation.results import Comparison, Row
from kvpolicy.huggingface.report import readable_bytes

HEADINGS = ("policy", "budget", "right", "95 %", "kept", "bytes", "of full", "ms")
"""The columns of `table`."""

NOTES = (
    "right: answers that are right from the first word to the last; 95 %: the interval of that "
    "share. kept: tokens of the prompt that a key/value head still holds, averaged over layers and "
    "heads. bytes: what the cache of one prompt has allocated after the answer, room to grow "
    "included.",
    "ms: the median time of one decoded token after one prompt, the caches taking turns. With a "
    "model and a prompt this small it shows everything but the attention: a figure for the demo, "
    "not a benchmark.",
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
    rows = [(row.name, row.budget or 0, _cells(comparison, row)) for row in comparison.rows]
    refused = [(each.name, each.budget or 0, ("refused", *nothing)) for each in comparison.refusals]
    full = (comparison.full.name, "", *_cells(comparison, comparison.full))
    return [full, *((name, str(budget), *rest) for name, budget, rest in sorted(rows + refused))]


def _cells(comparison: Comparison, row: Row) -> tuple[str, ...]:
    return (
        f"{row.correct} of {len(row.right)}",
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
    counts = {row.name: row.protected for row in comparison.rows if row.protected}
    if not counts:
        return []
    kept = listed([f"{count} by {name}" for name, count in sorted(counts.items())])
    return [f"Positions of every budget that are kept whatever their score: {kept}."]


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
    """Name a command that takes the best recipe of the smallest budget to a real model."""
    best = comparison.at(comparison.budgets[0])[0]
    return (
        f"kvpolicy generate --model PATH_OR_ID --recipe {best.name} --budget 1024 "
        "--prompt-file FILE"
    )


def _ranking(ranked: tuple[Row, ...]) -> str:
    best = [row.name for row in ranked if row.correct == ranked[0].correct]
    rest = ranked[len(best) :]
    verb = "gets" if len(best) == 1 else "each get"
    text = f"{listed(best)} {verb} {_score(ranked[0])} answers right"
    return f"{text}, the most, before {rest[0].name} with {rest[0].correct}" if rest else text


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


def _score(row: Row) -> str:
    return f"{row.correct} of {len(row.right)}"


def listed(names: list[str]) -> str:
    """Join names for a sentence.

    >>> listed(["a", "b", "c"])
    'a, b and c'
    """
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
