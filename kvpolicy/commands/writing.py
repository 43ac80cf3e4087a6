"""Writes files that a user asks for; a path that cannot be written is refused before the work."""

from __future__ import annotations

import os
from pathlib import Path

from kvpolicy.errors import InvalidValueError, shown


def check_file(option: str, file: Path | None) -> None:
    """Raise InvalidValueError if the file that `option` names cannot be written."""
    if file is None:
        return
    if not _can_be_written(file):
        raise InvalidValueError(
            f"cannot write {option} {shown(str(file))}. Give a file in a folder that exists and "
            "that you may write to."
        )


def check_folder(option: str, folder: Path) -> None:
    """Make the folder that `option` names; raise InvalidValueError if that is not possible."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InvalidValueError(
            f"cannot write into {option} {shown(str(folder))}: {reason}. Give a folder that you "
            "may write to."
        ) from error


def write(file: Path, text: str) -> None:
    """Write a text. Raise InvalidValueError if that fails."""
    try:
        file.write_text(text, encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InvalidValueError(
            f"cannot write {shown(str(file))}: {reason}. Give another file."
        ) from error


def _can_be_written(file: Path) -> bool:
    folder = file.absolute().parent
    try:
        os.lstat(file)
    except FileNotFoundError:
        pass
    except (OSError, ValueError):  # a name that is too long, or that has a zero in it
        return False
    return folder.is_dir() and not file.is_dir() and os.access(folder, os.W_OK)
