import json
import subprocess
import sys

import pytest
import typer

from benchmarks.beside_kvpress import ours
from benchmarks.beside_kvpress.__main__ import METHODS, ROOT, least, measured, rows_of
from benchmarks.page import kvpress as page
from benchmarks.rows import Row

FAST = {"snapkv": {"s": 0.1, "MiB": 10.0}}
SLOW = {"snapkv": {"s": 0.4, "MiB": 8.0}}


@pytest.mark.parametrize("method", METHODS)
def test_each_method_evicts_half(method):
    contents = ours.call_of(method, 256)()
    assert (contents.positions >= 0).sum(-1).float().mean() == pytest.approx(128, rel=0.8)
    assert contents.positions.shape[-1] < 256 or method in ("adakv", "pyramidkv")


def test_the_best_of_several_runs_counts():
    assert least([FAST, SLOW]) == {"snapkv": {"s": 0.1, "MiB": 8.0}}


def test_rows_say_how_many_times_as_fast_it_is_and_the_page_shows_them():
    rows = [Row.from_json(row.to_json()) for row in rows_of(FAST, SLOW, 16_384)]
    assert [row.value for row in rows if row.unit == "ratio"] == [pytest.approx(4.0)]
    assert list(page.sections(rows))[-1].splitlines()[-1] == (
        "| snapkv | 0.100 s | 0.400 s | 4.0x | 10 MiB | 8 MiB |"
    )
    assert list(page.sections([])) == []


def test_a_process_prints_seconds_and_memory():
    command = [sys.executable, "-m", "benchmarks.beside_kvpress.ours", "random"]
    done = subprocess.run(
        [*command, "--length", "256", "--repeats", "1"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    found = json.loads(done.stdout)
    assert found["method"] == "random"
    assert found["seconds"] > 0
    assert found["mib"] >= 0


def test_an_interpreter_without_kvpress_is_refused(capfd):
    with pytest.raises(typer.Exit):
        measured(sys.executable, "theirs", ["random"], 128)
    assert "kvpress" in capfd.readouterr().err
