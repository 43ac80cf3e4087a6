"""A file is replaced whole or not at all, and nothing is left beside it."""

import os
import resource
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

import kvpolicy
from kvpolicy.errors import CacheFileError
from kvpolicy.exactness.usages import small_policy
from kvpolicy.exactness.usages.inputs import read
from kvpolicy.huggingface.file import container, replacement
from kvpolicy.huggingface.file.replacement import replacement as replacing
from kvpolicy.testing.models import tiny_model


def mode_of(path):
    return path.stat().st_mode & 0o777


@pytest.fixture
def cache():
    model = tiny_model()
    found = small_policy("restkv").cache(model)
    read(model, found, (60, 1))
    found.kept = model
    return found


@pytest.mark.parametrize("raised", [OSError(28, "full"), KeyboardInterrupt(), MemoryError()])
def test_a_block_that_raises_leaves_everything_as_it_was(raised, path):
    path.write_text("old")
    path.chmod(0o640)
    with pytest.raises(type(raised)), replacing(path) as whole:  # noqa: PT012
        whole.write_text("half")
        raise raised
    assert path.read_text() == "old"
    assert mode_of(path) == 0o640
    assert list(path.parent.iterdir()) == [path]


def test_the_new_file_is_there_only_when_it_is_whole(path):
    with replacing(path) as whole:
        whole.write_text("new")
        assert not path.exists()
        assert mode_of(whole.parent) == 0o700
    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o660])
def test_a_file_keeps_its_permissions(mode, path, cache):
    path.touch()
    path.chmod(mode)
    cache.save(path)
    assert mode_of(path) == mode


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_a_new_file_has_the_permissions_of_any_new_file(mask, mode, path, cache):
    before = os.umask(mask)
    try:
        cache.save(path)
    finally:
        os.umask(before)
    assert mode_of(path) == mode


def test_a_link_is_followed_and_stays(path, cache):
    link = path.with_name("link")
    path.write_text("old")
    link.symlink_to(path.name)
    cache.save(link)
    assert link.is_symlink()
    assert kvpolicy.load(path, cache.kept).get_seq_length() == 61
    assert {each.name for each in path.parent.iterdir()} == {"link", path.name}


@pytest.mark.parametrize("name", ["fifo", "folder", "dangling", "x/new"])
def test_what_is_no_plain_file_stays_as_it_was(name, tmp_path, cache):
    os.mkfifo(tmp_path / "fifo")
    Path(tmp_path / "folder").mkdir()
    Path(tmp_path / "dangling").symlink_to("nowhere")
    before = {each.name: each.lstat() for each in tmp_path.iterdir()}
    with pytest.raises(CacheFileError):
        cache.save(tmp_path / name)
    after = {each.name: each.lstat() for each in tmp_path.iterdir()}
    assert {name: (at.st_ino, at.st_mode) for name, at in after.items()} == {
        name: (at.st_ino, at.st_mode) for name, at in before.items()
    }


def test_a_name_of_any_length_can_be_saved_to(tmp_path, cache):
    path = tmp_path / ("x" * 255)
    cache.save(path)
    assert kvpolicy.load(path, cache.kept).get_seq_length() == 61


@pytest.mark.parametrize("limit", [0, 1, 4096, 8192])
def test_a_full_disk_leaves_the_old_file(limit, path, cache, in_a_child):
    path.write_bytes(b"old")

    def attempt():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        with pytest.raises(CacheFileError, match=r"^cannot write [^\n]*\.$"):
            cache.save(path)

    in_a_child(attempt)
    assert path.read_bytes() == b"old"
    assert list(path.parent.iterdir()) == [path]


def test_a_process_without_file_descriptors_says_so(path, cache, in_a_child):
    def attempt():
        taken = []
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        with suppress(OSError):
            while True:
                taken.append(os.open("/dev/null", os.O_RDONLY))
        with pytest.raises(CacheFileError, match="Too many open files"):
            cache.save(path)
        for each in taken:
            os.close(each)

    in_a_child(attempt)
    assert not list(path.parent.iterdir())


def test_a_folder_that_may_not_be_written_says_so(tmp_path, cache, as_nobody):
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o555)

    def attempt():
        with pytest.raises(CacheFileError, match="Permission denied"):
            cache.save(folder / "new")

    as_nobody(attempt)
    assert not list(folder.iterdir())


KILLED = """
import os, signal, sys
from pathlib import Path
from kvpolicy.huggingface.file.replacement import replacement
with replacement(Path(sys.argv[1])) as whole:
    whole.write_text("half")
    print("half", flush=True)
    if sys.argv[2] == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    sys.stdin.read()
"""


def writer(path, then):
    environment = {"PYTHONPATH": ":".join(filter(None, sys.path))}
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, path, then],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout.readline() == b"half\n"
    return process


def test_what_a_killed_process_left_is_removed_by_the_next_save(path, cache):
    path.write_text("old")
    with writer(path, "die") as process:
        assert process.wait() == -signal.SIGKILL
    assert path.read_text() == "old"
    assert len(list(path.parent.iterdir())) == 2
    # Also one to another file of the folder.
    cache.save(path.with_name("other"))
    assert {each.name for each in path.parent.iterdir()} == {path.name, "other"}


def test_a_save_that_is_under_way_is_left_alone(path, cache):
    with writer(path, "wait") as process:
        cache.save(path.with_name("other"))
        process.communicate(b"")
    assert path.read_text() == "half"
    assert {each.name for each in path.parent.iterdir()} == {path.name, "other"}


def test_what_looks_like_a_folder_left_behind_is_left_alone(path, cache):
    outside = path.parent / "outside"
    outside.mkdir()
    (outside / "precious").touch()
    (path.parent / ".kvpolicy-link.part").symlink_to(outside)
    (path.parent / ".kvpolicy-file.part").write_text("precious")
    os.mkfifo(path.parent / ".kvpolicy-fifo.part")
    cache.save(path)
    assert (outside / "precious").exists()
    assert len(list(path.parent.iterdir())) == 5


def test_a_folder_that_another_process_takes_for_left_behind_is_made_again(path, monkeypatch):
    hold, calls = replacement._hold, []

    def robbed(folder):
        calls.append(folder)
        if len(calls) == 1:
            raise BlockingIOError
        if len(calls) == 2:
            folder.rmdir()
        return hold(folder) if folder.exists() else None

    monkeypatch.setattr(replacement, "_hold", robbed)
    with replacing(path) as whole:
        whole.write_text("new")
    assert path.read_text() == "new"
    assert len(calls) == 3


def test_a_file_system_without_locks_is_written_to(path, monkeypatch):
    monkeypatch.setattr(replacement, "fcntl", None)
    with replacing(path) as whole:
        whole.write_text("new")
    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path]


def test_many_savers_of_one_file_leave_one_whole_file(path, cache):
    errors = []

    def save():
        try:
            for _ in range(5):
                cache.save(path)
        except BaseException as error:  # noqa: BLE001 - shown below
            errors.append(error)

    threads = [threading.Thread(target=save) for _ in range(3)]
    for each in threads:
        each.start()
    while any(each.is_alive() for each in threads):
        if path.exists():
            container.read(path)
        time.sleep(0.001)
    assert not errors
    assert list(path.parent.iterdir()) == [path]
