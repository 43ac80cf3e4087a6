"""Which paths can be saved to and loaded from: those of plain files."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

from kvpolicy.errors import CacheFileError, shown

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def target(path: Any) -> Path:
    """Return the plain file to write for `path`: symbolic links are followed.

    Raises CacheFileError for a path that is no name of a plain file, or that may not be written.
    """
    name = _name(path)
    try:
        found = _found(name)
        if found is None:
            return _new(Path(name))
        real = os.path.realpath(name)
        # A deleted file that is still open has a link in /proc, and no path of its own.
        if not _is_one_file(name, real):
            raise CacheFileError(f"cannot write {name}: its file has no path. Name another file.")
        if not os.access(real, os.W_OK):
            raise CacheFileError(
                f"cannot write {name}: the file that is there is read-only. Name another file, or "
                "change its permissions."
            )
    except OSError as error:
        raise CacheFileError(f"cannot write {name}: {reason(error)}.") from error
    return Path(real)


def _is_one_file(name: str, real: str) -> bool:
    """Whether two paths lead to one file; asked again where another process replaces it now."""
    return any(os.path.samestat(Path(name).stat(), Path(real).stat()) for _ in range(20))


def source(path: Any) -> Path:
    """Return the plain file to read for `path`.

    Raises CacheFileError for a path that is no name of a plain file.
    """
    name = _name(path)
    try:
        found = _found(name)
    except OSError as error:
        raise CacheFileError(f"cannot read {name}: {reason(error)}.") from error
    if found is None:
        raise CacheFileError(f"there is no file {name}.")
    if not os.access(name, os.R_OK):
        raise CacheFileError(f"cannot read {name}: its permissions do not allow it.")
    return Path(name)


def reason(error: OSError) -> str:
    """Return what the system says of an error, in a few words."""
    return error.strerror or str(error) or type(error).__name__


def _name(path: Any) -> str:
    if not isinstance(path, str | os.PathLike):
        raise CacheFileError(f"a path is a str or an os.PathLike[str], not {shown(path)}.")
    name = os.fspath(path)
    if not isinstance(name, str):
        raise CacheFileError(f"a path is a str, not the bytes {shown(name)}. Use os.fsdecode.")
    if not name or "\0" in name:
        raise CacheFileError(f"{shown(name)} is no path of a file. Name a file.")
    try:
        name.encode()
    except UnicodeEncodeError:
        raise CacheFileError(
            f"the path {shown(name)} is not UTF-8, and safetensors cannot open it. Name a file "
            "in UTF-8."
        ) from None
    return name


def _found(name: str) -> os.stat_result | None:
    """Return what is known of the plain file at a path; None if nothing is there."""
    # A Path forgets that "file/" and "file/." name a folder.
    if os.path.split(name)[1] in ("", os.curdir, os.pardir):
        raise CacheFileError(f"{name} is the path of a folder. Name a plain file.")
    try:
        found = Path(name).stat()
    except FileNotFoundError:
        if Path(name).is_symlink():
            raise CacheFileError(
                f"{name} is a symbolic link to a file that is not there. Name the file itself."
            ) from None
        return None
    if not stat.S_ISREG(found.st_mode):
        kind = _KINDS.get(stat.S_IFMT(found.st_mode), "something else")
        raise CacheFileError(f"{name} is {kind}, and no plain file. Name a plain file.")
    return found


def _new(path: Path) -> Path:
    if not path.parent.is_dir():
        raise CacheFileError(
            f"cannot write {path}: there is no folder {path.parent}. Make it first."
        )
    return path.parent.resolve() / path.name
