"""Only plain files are saved to and loaded from; all else is refused with one sentence."""

import os
import socket
from pathlib import Path

import pytest

from kvpolicy.errors import CacheFileError
from kvpolicy.huggingface.file.paths import source, target


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with one of everything, and the folder in which relative paths begin."""
    monkeypatch.chdir(tmp_path)
    Path("plain").write_text("old")
    Path("folder").mkdir()
    os.mkfifo("fifo")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind("socket")
    for name, to in {
        "link": "plain",
        "chain": "link",
        "dangling": "nowhere",
        "loop": "loop",
        "to_folder": "folder",
        "to_fifo": "fifo",
    }.items():
        Path(name).symlink_to(to)
    Path("folder", "up").symlink_to("../plain")
    return tmp_path


NO_FILES = {
    "": "no path of a file",
    "a\0b": "no path of a file",
    ".": "the path of a folder",
    "..": "the path of a folder",
    "folder": "is a folder",
    "folder/": "the path of a folder",
    "new/": "the path of a folder",
    "plain/": "the path of a folder",
    "plain/.": "the path of a folder",
    "fifo": "is a FIFO",
    "socket": "is a socket",
    "to_folder": "is a folder",
    "to_fifo": "is a FIFO",
    "dangling": "a symbolic link to a file that is not there",
    "loop": "Too many levels of symbolic links",
    "plain/x": "Not a directory",
    "/dev/null": "is a device",
    "/dev/full": "is a device",
    "x" * 256: "File name too long",
    "\udcff": "not UTF-8",
    "\udcff/x": "not UTF-8",
}


@pytest.mark.parametrize("name", NO_FILES, ids=repr)
@pytest.mark.parametrize("door", [target, source])
def test_what_is_no_plain_file_is_refused(door, name, place):
    with pytest.raises(CacheFileError, match=NO_FILES[name]) as raised:
        door(name)
    message = str(raised.value)
    assert message.endswith(".")
    assert "\n" not in message
    message.encode()


@pytest.mark.parametrize("path", [None, 3, True, b"plain", ["plain"], Ellipsis], ids=repr)
@pytest.mark.parametrize("door", [target, source])
def test_what_is_no_path_is_refused(door, path, place):
    with pytest.raises(CacheFileError, match="a path is a str"):
        door(path)


def test_a_path_that_gives_bytes_is_refused(place):
    class Bytes:
        def __fspath__(self):
            return b"plain"

    with pytest.raises(CacheFileError, match="not the bytes"):
        target(Bytes())


@pytest.mark.parametrize("name", ["plain", "link", "chain", "folder/up", "folder/../plain"])
def test_links_are_followed_to_their_plain_file(name, place):
    assert target(name) == (place / "plain").resolve()
    assert source(Path(name)).read_text() == "old"


@pytest.mark.parametrize("name", ["new", "folder/new", "to_folder/new", "x" * 255, "ünï", "a\nb"])
def test_a_new_file_goes_where_its_name_says(name, place):
    assert target(name) == Path(os.path.realpath(name))
    with pytest.raises(CacheFileError, match="there is no file"):
        source(name)


@pytest.mark.parametrize("name", ["nowhere/x", "nowhere/../x", "dangling/x"])
def test_a_folder_that_is_not_there_is_named(name, place):
    with pytest.raises(CacheFileError, match="there is no folder"):
        target(name)


def test_a_file_that_was_removed_and_is_still_open_is_refused(place):
    with Path("plain").open() as file:
        Path("plain").unlink()
        with pytest.raises(CacheFileError):
            target(f"/proc/self/fd/{file.fileno()}")


def test_permissions_are_respected(place, as_nobody):
    Path("plain").chmod(0o444)
    Path("secret").touch(mode=0o000)
    Path("closed").mkdir(mode=0o700)

    def attempts():
        with pytest.raises(CacheFileError, match="read-only"):
            target("plain")
        with pytest.raises(CacheFileError, match="permissions do not allow"):
            source("secret")
        for door in (target, source):
            with pytest.raises(CacheFileError, match="Permission denied"):
                door("closed/x")

    as_nobody(attempts)
