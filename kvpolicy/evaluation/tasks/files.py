"""Files that tasks need: where they are looked for, and what is said if they are not there."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

from kvpolicy.errors import DataError, shown

File: TypeAlias = Path | zipfile.Path
"""A file, which may be in an archive."""


def file_in(folder: Path, name: str) -> File:
    """Return a file of a folder or of a .zip; it may be in a folder `data` or in data.zip there.

    Raises DataError for a file that is no .zip.
    """
    if folder.is_file():
        return _archived(folder, name)
    for file in (folder / name, folder / "data" / name):
        if file.is_file():
            return file
    archive = folder / "data.zip"
    return _archived(archive, name) if archive.is_file() else folder / name


def _archived(archive: Path, name: str) -> File:
    try:
        root = zipfile.Path(archive)
    except (zipfile.BadZipFile, OSError) as error:
        raise DataError(
            f"{shown(str(archive))} is neither a folder nor a .zip: {error}. Give the folder of "
            f"{name}."
        ) from error
    inside = root / "data" / name
    return inside if inside.is_file() else root / name


def text_of(file: File, origin: str) -> str:
    """Return the text of a file.

    Raises DataError with `origin`, which says where the file comes from and how large it is.
    """
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{shown(str(file))} is not UTF-8 text (byte {error.start}).") from error
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise missing(file, origin, getattr(error, "strerror", None) or str(error)) from error


def json_of(file: File, origin: str) -> Any:
    """Return the JSON data of a file.

    Raises DataError.
    """
    try:
        return json.loads(text_of(file, origin))
    except ValueError as error:
        raise DataError(f"{shown(str(file))} is no JSON: {error}.") from error


def lines_of(file: File, origin: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the objects of a file of JSON lines, each with the words for where it stands.

    Raises DataError for a line that is no object.
    """
    for number, line in enumerate(text_of(file, origin).split("\n"), start=1):
        place = f"{file}, line {number}"
        if not line.strip():
            continue
        try:
            data = json.loads(line)
        except ValueError as error:
            raise DataError(f"{place} is no JSON: {error}.") from error
        if not isinstance(data, dict):
            raise DataError(f"{place} is {shown(data)}. It must be an object.")
        yield place, data


def field_of(place: str, data: dict[str, Any], field: str, kind: type) -> Any:
    """Return a field of a line.

    Raises DataError if it is missing or of another kind.
    """
    if field not in data:
        raise DataError(f"{place} has no field {field!r}. Fields: {', '.join(data) or 'none'}.")
    if not isinstance(data[field], kind):
        raise DataError(
            f"{place}: field {field!r} is {shown(data[field])}. It must be of type {kind.__name__}."
        )
    return data[field]


def missing(file: File, origin: str, reason: str) -> DataError:
    """Return the error for a file that cannot be read."""
    return DataError(
        f"cannot read {file.name} in {shown(str(_absolute(file).parent))}: {reason}. {origin}"
    )


def _absolute(file: File) -> Path:
    return Path(str(file)).absolute()
