"""Reads files of results for a report; it changes no file."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import attrs

from kvpolicy.errors import InvalidValueError, ResultsError, shown, suggest
from kvpolicy.evaluation.runs.results import parsed
from kvpolicy.evaluation.runs.row import Row
from kvpolicy.evaluation.runs.stored import address_of, rows_at


@attrs.frozen(kw_only=True)
class Loaded:
    """The rows of one model, and what a reader of the report must know about them."""

    rows: tuple[Row, ...] = attrs.field(repr=False)
    notes: tuple[str, ...] = ()


def load(files: Sequence[str | os.PathLike[str]], *, model: str | None = None) -> Loaded:
    """Return the rows of all files; `model` chooses one if there are several.

    A last line that was cut off is left out, and a note says so. A run that is there twice counts
    once, the later one. Raises ResultsError if a file cannot be read, holds a line that is no row,
    or has no row at all, and InvalidValueError if there are several models and none is chosen, or
    if the chosen one has no rows.
    """
    rows: list[Row] = []
    notes: list[str] = []
    for file in files:
        found, whole = _read(Path(file))
        if not found:
            raise ResultsError(
                f"{shown(str(file))} has no rows. Give a file that `kvpolicy eval --output` wrote."
            )
        if not whole:
            notes.append(f"The last line of {file} was cut off, and is left out.")
        rows += found
    chosen = _of_model(rows, model)
    once = {_run(row): row for row in chosen}
    if len(once) < len(chosen):
        notes.append(
            f"{len(chosen) - len(once)} of {len(chosen)} rows repeat a run. The later row counts."
        )
    return Loaded(rows=_told_apart(once.values()), notes=(*notes, *_mixtures(once.values())))


def model_of(row: Row) -> str:
    """Return the name of a row's model."""
    model = row.run.get("model", {})
    return str(model.get("name") or model.get("class") or "a model without a name")


def _read(file: Path) -> tuple[list[Row], bool]:
    """Return the rows of a file or an address, and whether its last line is whole."""
    if (address := address_of(file)) is not None:
        return rows_at(address), True
    try:
        data = file.read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ResultsError(
            f"cannot read {shown(str(file))}: {reason}. Give a file that `kvpolicy eval --output` "
            "wrote."
        ) from error
    *lines, rest = data.split(b"\n")
    rows = [parsed(line, file, number) for number, line in enumerate(lines, 1) if line.strip()]
    if not rest.strip():
        return rows, True
    try:
        return [*rows, parsed(rest, file, len(lines) + 1)], True
    except ResultsError:
        return rows, False


def _of_model(rows: Sequence[Row], model: str | None) -> list[Row]:
    names = list(dict.fromkeys(map(model_of, rows)))
    if model is None and len(names) > 1:
        raise InvalidValueError(
            f"there are rows of {len(names)} models: {', '.join(names)}. Choose one with --model."
        )
    if model is not None and model not in names:
        raise InvalidValueError(
            f"there are no rows of the model {shown(model)}.{suggest(model, names)} There are rows "
            f"of: {', '.join(names)}."
        )
    return [row for row in rows if model in (None, model_of(row))]


def _run(row: Row) -> tuple[object, ...]:
    return (row.task, row.metric, row.question, row.entrant, row.budget, row.sample)


def _told_apart(rows: Iterable[Row]) -> tuple[Row, ...]:
    """Name tasks by their metric and by where the question stood, where these differ."""
    rows = tuple(rows)
    kinds: dict[str, set[tuple[str, str]]] = {}
    for row in rows:
        kinds.setdefault(row.task, set()).add((row.metric, row.question))
    return tuple(attrs.evolve(row, task=_title(row, kinds[row.task])) for row in rows)


def _title(row: Row, kinds: set[tuple[str, str]]) -> str:
    several = [len({kind[place] for kind in kinds}) > 1 for place in (0, 1)]
    parts = [row.task]
    if several[0]:
        parts.append(row.metric)
    if several[1]:
        parts.append(f"question {row.question}")
    return ", ".join(parts)


def _mixtures(rows: Iterable[Row]) -> list[str]:
    """Say what differs between rows that are compared as if it did not."""
    rows = list(rows)
    notes = []
    digests = {row.run.get("model", {}).get("digest") for row in rows}
    if len(digests) > 1:
        notes.append("The rows are of several versions of the model, or of several data types.")
    codes: dict[tuple[str, object], set[object]] = {}
    for row in rows:
        codes.setdefault((row.entrant, row.budget), set()).add(row.run.get("code"))
    if any(len(found) > 1 for found in codes.values()):
        notes.append("Rows of one recipe were made with several versions of the code.")
    return notes
