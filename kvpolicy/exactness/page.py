"""The page and the rows: measured lines as JSON lines, and as Markdown."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import attrs

from kvpolicy.exactness.cells import Line
from kvpolicy.exactness.families import families
from kvpolicy.exactness.markdown import escaped

TEMPLATE = Path(__file__).with_name("page.md")
SIGNS = {"refused": "-", "changed": "~"}


def write(lines: Iterable[Line], path: Path) -> None:
    """Write measured lines, one JSON object a line."""
    text = "".join(json.dumps(attrs.asdict(line)) + "\n" for line in lines)
    path.write_text(text, encoding="utf-8")


def read(path: Path) -> list[Line]:
    """Read what `write` wrote."""
    return parsed(path.read_text(encoding="utf-8-sig"))


def parsed(text: str) -> list[Line]:
    """Return the lines that `write` wrote as this text."""
    return [Line(**json.loads(line)) for line in text.splitlines()]


def merged(earlier: Iterable[Line], later: Iterable[Line]) -> list[Line]:
    """Return earlier lines, where those measured again have their new cells; new ones come last.

    >>> old, new = (Line(table="recipes", subject="h2o", note=each) for each in ("old", "new"))
    >>> [line.note for line in merged([old], [new])]
    ['new']
    """
    lines = {(line.table, line.subject): line for line in (*earlier, *later)}
    return list(lines.values())


def counts(lines: Iterable[Line]) -> Counter[str]:
    """Count cells by outcome.

    >>> counts([Line(table="recipes", subject="h2o", cells={"one prompt": 2e-6})])
    Counter({'exact': 1})
    """
    return Counter(outcome for line in lines for outcome in line.outcomes.values())


def rendered(lines: Sequence[Line]) -> str:
    """Return the page: the template with its fields in braces filled in."""
    served = [line for line in lines if line.refused is None]
    of_media = [line for line in lines if line.table == "media"]
    usages = _usages_of([line for line in served if line.table != "media"])
    total = counts(lines)
    parts = {
        **{outcome: str(total[outcome]) for outcome in ("exact", "wrong", "refused", "changed")},
        "types_served": str(sum(line.table == "architectures" for line in served)),
        "types_refused": str(
            sum(line.refused is not None and line.table != "media" for line in lines)
        ),
        "families": "\n".join(families(lines)),
        "usages": "\n".join(f"{number}. {usage}" for number, usage in enumerate(usages, 1)),
        "reasons": "\n".join(_reasons([each for each in served if each.table != "media"])),
        "not_served": "\n".join(_not_served([each for each in lines if each not in of_media])),
        **_media(of_media),
    }
    for table in ("architectures", "recipes", "attentions", "precisions"):
        parts[table] = "\n".join(_table([line for line in served if line.table == table], usages))
    template = TEMPLATE.read_text(encoding="utf-8")
    return re.sub(r"\{(\w+)\}", lambda field: parts.get(field[1], field[0]), template)


def _usages_of(lines: Sequence[Line]) -> list[str]:
    return list(dict.fromkeys(usage for line in lines for usage in line.outcomes))


def _media(lines: Sequence[Line]) -> dict[str, str]:
    """Return the fields of the section on models that read media."""
    served = [line for line in lines if line.refused is None]
    usages = _usages_of(served)
    return {
        "media_served": str(len(served)),
        "media_types": str(len(lines)),
        "media_usages": "\n".join(f"{at}. {usage}" for at, usage in enumerate(usages, 1)),
        "media": "\n".join(_table(served, usages)),
        "media_reasons": "\n".join(_reasons(served)),
        "media_not_served": "\n".join(_not_served(lines)),
    }


def _table(lines: Sequence[Line], usages: Sequence[str]) -> Iterator[str]:
    yield "| | " + " | ".join(str(number) for number, _ in enumerate(usages, 1)) + " |"
    yield "|---" * (len(usages) + 1) + "|"
    for line in lines:
        name = f"{line.subject} ({line.note})" if line.note not in ("", "sdpa") else line.subject
        cells = (_cell(line, usage) for usage in usages)
        yield f"| {escaped(name)} | " + " | ".join(cells) + " |"


def _cell(line: Line, usage: str) -> str:
    cell, outcome = line.cells[usage], line.outcomes[usage]
    if isinstance(cell, str):
        return SIGNS.get(outcome, "**crashed**")
    number = "0" if cell == 0 else f"{cell:.0e}".replace("e-0", "e-")
    return number if outcome == "exact" else f"**{number}**"


def _reasons(lines: Sequence[Line]) -> Iterator[str]:
    """Give each reason for a refused cell once, with its usages and subjects."""
    subjects: dict[tuple[str, str], list[str]] = {}
    for line in lines:
        for usage, outcome in line.outcomes.items():
            if isinstance(line.cells[usage], str) and outcome != "changed":
                # transformers adds the name of the model.
                reason = str(line.cells[usage]).partition(", such as ")[0].rstrip(".")
                subjects.setdefault((usage, reason), []).append(line.subject)
    usages: dict[tuple[str, str], list[str]] = {}
    for (usage, reason), found in subjects.items():
        whom = "all others" if 2 * len(found) > len(lines) else ", ".join(found)
        usages.setdefault((whom, reason), []).append(f"*{usage}*")
    for (whom, reason), names in usages.items():
        yield f"- {', '.join(names)}, {escaped(whom)}: {escaped(reason)}."


def _not_served(lines: Sequence[Line]) -> Iterator[str]:
    yield "| model type | why |"
    yield "|---|---|"
    for line in lines:
        if line.refused is not None:
            yield f"| {escaped(line.subject)} | {escaped(line.refused)} |"
