"""Is my model served, and with what: model types in groups that are served or refused alike."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from kvpolicy.exactness.cells import Line
from kvpolicy.exactness.markdown import escaped

NOT_BUILT = "transformers cannot build it tiny"
"""How the reason begins for a type that could not be measured."""


def families(lines: Sequence[Line]) -> Iterator[str]:
    """Yield a table of all model types: served with which limits, or refused and why.

    >>> lines = [Line(table="architectures", subject="llama", cells={"sampling": 1e-6}),
    ...          Line(table="architectures", subject="gpt2", cells={"sampling": 2e-6})]
    >>> list(families(lines))[2]
    '| served in all usages | 2 | gpt2, llama |'
    """
    types = [line for line in lines if line.table == "architectures"]
    yield "| | types | which |"
    yield "|---|---|---|"
    yield from _rows((_limits(line), line) for line in types if line.refused is None)
    refused = [line for line in types if line.refused is not None]
    yield from _rows((_reason(str(line.refused)), line) for line in refused)


def _rows(labelled: Iterable[tuple[str, Line]]) -> Iterator[str]:
    """Yield a row for each label, the one with the most types first."""
    groups: dict[str, list[str]] = {}
    for label, line in labelled:
        groups.setdefault(label, []).append(line.subject)
    for label, names in sorted(groups.items(), key=lambda each: (-len(each[1]), each[0])):
        yield f"| {escaped(label)} | {len(names)} | {escaped(', '.join(sorted(names)))} |"


def _limits(line: Line) -> str:
    """Say with which attention a type is served, and in which usages it is not."""
    with_what = "" if line.note in ("", "sdpa") else f" with {line.note} attention"
    if line.note.endswith(", value space"):
        with_what = " with eager attention, errors in value space"
    outcomes = line.outcomes
    refused = [usage for usage, outcome in outcomes.items() if outcome == "refused"]
    wrong = [usage for usage, outcome in outcomes.items() if outcome == "wrong"]
    usages = "in all usages" if not refused else f"in all usages but {', '.join(refused)}"
    return f"served{with_what} {usages}" + (f"; wrong in {', '.join(wrong)}" if wrong else "")


def _reason(refusal: str) -> str:
    """Return a reason without the names of one type, as far as they are known."""
    kind, _, reason = refusal.partition(": ")
    if kind == NOT_BUILT:
        return f"not measured: {NOT_BUILT}"
    # A class of transformers: DeepseekV3ForCausalLM, XLNetLMHeadModel.
    reason = re.sub(r"\b\w+(ForCausalLM|LMHeadModel)\b", "the model", reason)
    reason = re.sub(r"\blayer \d+\b", "a layer", reason).rstrip(".")
    return f"refused: {reason.removeprefix('the model ')}"
