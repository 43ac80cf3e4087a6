"""A path that cannot be written is refused."""

from __future__ import annotations

import pytest

from kvpolicy.commands.writing import check_file, check_folder, write
from kvpolicy.errors import InvalidValueError


@pytest.mark.parametrize("name", ["", "nowhere/file", "x" * 5000, "a\0b"])
def test_a_file_that_cannot_be_written_is_named(tmp_path, name):
    with pytest.raises(InvalidValueError, match=r"cannot write --page '"):
        check_file("--page", tmp_path / name)
    with pytest.raises(InvalidValueError, match=r"cannot write '"):
        write(tmp_path / name, "text")


def test_no_file_and_a_file_that_can_be_written_are_accepted(tmp_path):
    check_file("--page", None)
    check_file("--page", tmp_path / "page.html")
    write(tmp_path / "page.html", "ä")
    assert (tmp_path / "page.html").read_bytes() == "ä".encode()


def test_a_folder_is_made(tmp_path):
    check_folder("--figures", tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()


def test_a_folder_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "a").touch()
    with pytest.raises(InvalidValueError, match=r"cannot write into --figures '.*a': File exists"):
        check_folder("--figures", tmp_path / "a")
