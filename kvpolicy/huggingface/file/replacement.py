"""Replace a file whole, or leave it as it is, and leave nothing else behind."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows, where a folder is not removed while a file in it is open
    fcntl = None  # type: ignore[assignment]

_PREFIX, _SUFFIX = ".kvpolicy-", ".part"
_WHOLE, _USUAL = "whole", "usual"


@contextmanager
def replacement(path: Path) -> Iterator[Path]:
    """Give a path to write to; when the block ends, what is there takes the place of `path`.

    If the block raises, `path` stays as it was. The file is written in a folder beside `path`,
    which is removed in either case. A process that is killed leaves its folder; the next
    replacement in the same place removes it. The file keeps the permissions of the file that it
    replaces.

    Raises OSError if something cannot be written.
    """
    _remove_left_behind(path.parent)
    with _folder(path.parent) as folder:
        whole = folder / _WHOLE
        yield whole
        _give_permissions(path, whole)
        # A new name that reaches the disk before the contents would be an empty file.
        _flush(whole)
        whole.replace(path)


@contextmanager
def _folder(parent: Path) -> Iterator[Path]:
    """Make a folder that no other process takes for left behind, until the block is left."""
    folder, held = _made(parent)
    try:
        yield folder
    finally:
        if held is not None:
            os.close(held)
        # A process may have no descriptor left with which to list a folder.
        with suppress(OSError):
            for name in (_WHOLE, _USUAL):
                (folder / name).unlink(missing_ok=True)
            folder.rmdir()
        shutil.rmtree(folder, ignore_errors=True)


def _made(parent: Path) -> tuple[Path, int | None]:
    """Return a new folder, and what holds it; None where the file system has no locks."""
    while True:
        folder = parent / f"{_PREFIX}{secrets.token_hex(8)}{_SUFFIX}"
        folder.mkdir(mode=0o700)
        try:
            held = _hold(folder)
        except (BlockingIOError, FileNotFoundError):
            continue  # another process found the folder before it was held, and removes it
        except BaseException:
            folder.rmdir()
            raise
        if folder.exists():
            return folder, held
        if held is not None:
            os.close(held)


def _hold(folder: Path) -> int | None:
    """Lock a folder for as long as this process lives; None where there are no locks.

    Raises BlockingIOError if another holds it, FileNotFoundError if it is not there.
    """
    if fcntl is None:
        return None
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if isinstance(error, BlockingIOError):
            raise
        return None
    return descriptor


def _remove_left_behind(parent: Path) -> None:
    """Remove the folders of processes that were killed: nobody holds them any more."""
    with suppress(OSError):
        for folder in parent.glob(f"{_PREFIX}*{_SUFFIX}"):
            with suppress(OSError):
                held = _hold(folder)
                if held is not None:
                    shutil.rmtree(folder, ignore_errors=True)
                    os.close(held)


def _give_permissions(path: Path, whole: Path) -> None:
    """Give a file the permissions of the file that it replaces, or those of any new file."""
    if path.exists():
        found = path.stat()
        with suppress(AttributeError, OSError):  # on Windows; and for all users but root
            os.chown(whole, found.st_uid, found.st_gid)
    else:
        usual = whole.with_name(_USUAL)
        usual.touch(mode=0o666)
        found = usual.stat()
    whole.chmod(found.st_mode & 0o777)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
