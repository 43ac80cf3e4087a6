"""Tables in LaTeX, for the package booktabs: a table for each task, the best in bold."""

from __future__ import annotations

from collections.abc import Sequence

from kvpolicy.evaluation.reports.matrix import Figure, matrix
from kvpolicy.evaluation.reports.summary import Cell, by_task

_SPECIAL = {
    "\\": r"\textbackslash{}",
    **{character: rf"\{character}" for character in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
}
_BETTER, _WORSE = r"$^{+}$", r"$^{-}$"


def latex(cells: Sequence[Cell], *, baseline: str) -> str:
    """Return the tables of all tasks, to be put into a document that uses booktabs."""
    tables = [_table(task, found, baseline) for task, found in by_task(cells).items()]
    return "\n".join(["% Needs \\usepackage{booktabs}", *tables])


def escaped(text: str) -> str:
    r"""Return text as LaTeX prints it.

    >>> escaped("25 % of a_b")
    '25 \\% of a\\_b'
    """
    return "".join(_SPECIAL.get(character, character) for character in text)


def _table(task: str, cells: Sequence[Cell], baseline: str) -> str:
    found = matrix(cells)
    better = "higher" if cells[0].larger_is_better else "lower"
    caption = (
        f"{task}: {cells[0].metric} ({better} is better), with 95 % intervals. Bold: the best of a "
        f"column that evicts. Marked: better or worse than {baseline}, by the 95 % interval of the "
        "paired difference."
    )
    lines = [
        r"\begin{table}",
        r"  \centering",
        rf"  \caption{{{escaped(caption)}}}",
        rf"  \begin{{tabular}}{{l{'r' * (len(found['headings']) - 1)}}}",
        r"    \toprule",
        f"    {' & '.join(map(escaped, found['headings']))} \\\\",
        r"    \midrule",
        *(
            f"    {' & '.join([escaped(name), *map(_score, figures)])} \\\\"
            for name, figures in found["matrix"]
        ),
        r"    \bottomrule",
        r"  \end{tabular}",
        r"\end{table}",
        "",
    ]
    return "\n".join(lines)


def _score(figure: Figure | None) -> str:
    if figure is None:
        return "--"
    value = rf"\textbf{{{figure.value}}}" if figure.best else figure.value
    value += {"better": _BETTER, "worse": _WORSE}.get(figure.verdict, "")
    return value if figure.interval == "-" else rf"{value} {{\scriptsize ({figure.interval})}}"
