"""Text is UTF-8. A byte-order mark is no part of it, and UTF-16 is refused in one sentence."""

import io
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvpolicy.commands.text import _decoded, read_text
from kvpolicy.errors import InvalidValueError

BOM = b"\xef\xbb\xbf"
UTF16 = "--prompt-file 'prompt.txt' is UTF-16 text. Save it as UTF-8."


@pytest.fixture
def read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def of(data):
        (tmp_path / "prompt.txt").write_bytes(data)
        return read_text("prompt.txt", "--prompt-file")

    return of


def test_a_mark_at_the_start_is_left_out_and_one_within_is_kept(read):
    assert read(BOM + "naïve\ufeff".encode()) == "naïve\ufeff"


def test_every_line_ends_with_a_line_feed(read):
    assert read(b"a\r\nb\rc\n") == "a\nb\nc\n"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_utf_16_is_refused_in_one_sentence(read, encoding):
    with pytest.raises(InvalidValueError) as caught:
        read("What is the code?".encode(encoding))
    assert str(caught.value) == UTF16


@pytest.mark.parametrize(("start", "place"), [(b"", 3), (BOM, 6)])
def test_bytes_that_are_no_text_are_named_by_their_place(read, start, place):
    with pytest.raises(InvalidValueError, match=rf"is not UTF-8 text \(at byte {place}\)"):
        read(start + b"abc\xff")


@pytest.mark.parametrize("name", ["not there", "a\0b", "."])
def test_what_cannot_be_read_is_named(name):
    with pytest.raises(InvalidValueError, match="cannot read --prompt-file ") as caught:
        read_text(name, "--prompt-file")
    assert "Give a file with UTF-8 text, or - for standard input." in str(caught.value)


@pytest.mark.parametrize(
    ("stream", "text"),
    [
        (io.TextIOWrapper(io.BytesIO(BOM + "né".encode()), encoding="latin-1"), "né"),
        (io.StringIO("\ufeffhere"), "here"),
        (None, ""),
    ],
    ids=["bytes", "text", "closed"],
)
def test_standard_input_is_read_like_a_file(monkeypatch, stream, text):
    monkeypatch.setattr(sys, "stdin", stream)
    assert read_text("-", "--prompt-file") == text


@given(st.text(st.characters(exclude_characters="\0\r", codec="utf-8")))
def test_text_without_zeros_is_never_taken_for_utf_16(text):
    assert _decoded(text.encode(), "a test") == text.removeprefix("\ufeff")
