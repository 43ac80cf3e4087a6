"""Tables for papers."""

from __future__ import annotations

from kvpolicy.evaluation.reports.latex import latex
from kvpolicy.evaluation.reports.summary import summary


def test_the_best_is_bold_and_what_differs_from_the_baseline_is_marked(rows):
    text = latex(summary(rows), baseline="full")
    assert r"policy & 64 & 25 \% \\" in text
    assert r"restkv & \textbf{0.800} {\scriptsize (0.490 to 0.943)} & 0.500$^{-}$" in text
    assert r"snapkv & 0.500$^{-}$ {\scriptsize (0.237 to 0.763)} & -- \\" in text


def test_a_table_is_whole(rows):
    text = latex(summary(rows), baseline="full")
    for part in ("begin", "end"):
        assert text.count(rf"\{part}{{table}}") == text.count(rf"\{part}{{tabular}}") == 1
    for rule in ("toprule", "midrule", "bottomrule"):
        assert text.count(rule) == 1
    lines = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert {line.count("&") for line in lines} == {2}


def test_names_with_signs_of_latex_are_escaped(make_row):
    text = latex(summary([make_row("1", task=r"a_b & 50% {\x} #$^~")]), baseline="full")
    assert r"a\_b \& 50\% \{\textbackslash{}x\} \#\$\textasciicircum{}\textasciitilde{}" in text
