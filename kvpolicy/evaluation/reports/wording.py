"""How figures are written, in every report."""

from __future__ import annotations

from collections.abc import Sequence

from kvpolicy.budget import written
from kvpolicy.evaluation.measures.bootstrap import Estimate
from kvpolicy.evaluation.reports.summary import Cell
from kvpolicy.huggingface.report import readable_bytes

NOTHING = "-"
HEADINGS = (
    "policy",
    "budget",
    "score",
    "95 % interval",
    "minus baseline",
    "samples",
    "positions",
    "bytes",
    "footprint",
    "first token",
    "each token",
)
NOTES = (
    "score: the mean over samples, or the perplexity of the answers, or for f1_of_set and "
    "matthews_correlation a figure of all samples together. Perplexity is better where it is "
    "lower, all other metrics where they are higher.",
    "95 % interval: Wilson's where every score is 0 or 1 and each question has a text of its own. "
    "Else the percentile bootstrap over texts (2,000 draws, fixed seed): questions on one text are "
    "drawn together. If all questions are on the same text, it is over questions, and says nothing "
    "of other texts.",
    "minus baseline: the score minus the baseline's on the same samples, and the interval of that "
    "difference by the paired bootstrap. An interval that holds 0 shows no difference.",
    "positions: how many positions of the prompt a key/value head held when the answer began. "
    "footprint: entries that attention had, summed over all tokens read, as a share of the full "
    "cache's.",
)

REACH_TITLE = "Bytes at 95 % of the full cache's score"
REACH = (
    "The smallest budget from which on a recipe has 95 % of the full cache's score, the bytes of "
    "its cache there, and their share of the full cache's. A perplexity may be 1 / 0.95 of the "
    "full cache's. none: the largest budget that was measured is not enough. Those that need the "
    "fewest bytes come first."
)


def overview(baseline: str) -> str:
    """Say what the table of all tasks together shows."""
    return (
        f"The mean score over tasks, and on how many of them a recipe is better (+) or worse (-) "
        f"than {baseline}: the 95 % interval of the difference does not hold 0. Perplexities are "
        "left out."
    )


def figure(value: float | None) -> str:
    """Write a score or a perplexity.

    >>> figure(0.87512), figure(1234.5), figure(None)
    ('0.875', '1,234.5', '-')
    """
    if value is None:
        return NOTHING
    return f"{value:,.1f}" if abs(value) >= 100 else f"{value:.3f}"


def interval(estimate: Estimate | None) -> str:
    """Write the interval of a figure.

    >>> from kvpolicy.evaluation.measures.interval import Interval
    >>> interval(Estimate(0.5, Interval(0.25, 0.75)))
    '0.250 to 0.750'
    """
    if estimate is None or estimate.interval is None:
        return NOTHING
    low, high = estimate.interval
    return f"{figure(low)} to {figure(high)}"


def signed(estimate: Estimate | None) -> str:
    """Write a difference and its interval.

    >>> from kvpolicy.evaluation.measures.interval import Interval
    >>> signed(Estimate(-0.25, Interval(-0.5, 0.0)))
    '-0.250 (-0.500 to 0.000)'
    """
    if estimate is None:
        return NOTHING
    # A difference that rounds to nothing has no sign.
    text = figure(abs(estimate.value))
    sign = "" if float(text.replace(",", "")) == 0 else "-" if estimate.value < 0 else "+"
    around = interval(estimate)
    return f"{sign}{text}" + ("" if around == NOTHING else f" ({around})")


def line(cell: Cell) -> tuple[str, ...]:
    """Write one entrant's figures, as `HEADINGS` names them."""
    samples = str(cell.samples) + (f", {cell.errors} failed" if cell.errors else "")
    return (
        cell.entrant,
        NOTHING if cell.budget is None else written(cell.budget),
        figure(None if cell.estimate is None else cell.estimate.value),
        interval(cell.estimate),
        signed(cell.difference),
        samples,
        NOTHING if cell.positions is None else f"{cell.positions:,.0f}",
        NOTHING if cell.nbytes is None else readable_bytes(cell.nbytes),
        NOTHING if cell.footprint is None else f"{100 * cell.footprint:.1f} %",
        time(cell.first_seconds),
        time(cell.token_seconds),
    )


def parts(cells: Sequence[Cell]) -> tuple[list[str], list[list[str]]] | None:
    """Write further figures of a metric, a line for each entrant; None if there are none."""
    names = sorted({name for cell in cells for name in cell.parts})
    if not names:
        return None
    lines = [
        [
            cell.entrant,
            NOTHING if cell.budget is None else written(cell.budget),
            *(figure(cell.parts.get(name)) for name in names),
        ]
        for cell in cells
    ]
    return [*HEADINGS[:2], *names], lines


def complaints(cells: Sequence[Cell]) -> list[str]:
    """Say for each entrant that failed why it first did."""
    return [
        f"{cell.title} failed on {cell.errors} of {cell.samples + cell.errors} samples of "
        f"{cell.task}: {cell.error}"
        for cell in cells
        if cell.errors
    ]


def time(seconds: float | None) -> str:
    """Write a time in the unit that fits it.

    >>> time(0.0021), time(2.5), time(None)
    ('2.1 ms', '2.5 s', '-')
    """
    if seconds is None:
        return NOTHING
    return f"{1000 * seconds:,.1f} ms" if seconds < 1 else f"{seconds:,.1f} s"
