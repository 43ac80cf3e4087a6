"""docs/performance.md says what the committed rows say, and nothing that was not measured."""

import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from benchmarks.cpu.targets import SPEED, TARGETS, with_exponents
from benchmarks.page.__main__ import PAGE, PICTURE, committed_rows, page
from benchmarks.page.picture import save_growth
from benchmarks.rows import Row
from benchmarks.targets import verdicts

NO_GPU = "Nothing has been measured on a GPU"


def row(**changes):
    about = {"benchmark": "cpu.layer", "name": SPEED, "variant": "restkv", "against": "authors"}
    about |= {"value": 30.0, "unit": "ratio", "device": "cpu", "dtype": "float32"}
    return Row(**about | {"shape": {"S": 4096, "W": 32, "K": 1024}} | changes)


def test_the_committed_page_is_what_the_committed_rows_give():
    assert PAGE.read_text() == page(committed_rows())


def test_the_picture_that_the_page_shows_is_committed():
    assert f"({PICTURE.name})" in PAGE.read_text()
    assert PICTURE.exists()


def test_without_rows_the_page_has_bounds_and_says_that_nothing_was_measured():
    text = page([])
    assert "make bench" in text
    assert NO_GPU in text
    assert "2.13x" in text


def test_rows_of_a_gpu_take_the_place_of_the_sentence_that_there_are_none():
    text = page([row(benchmark="gpu.kernels", name="gather_kv", device="NVIDIA H200", value=1.5)])
    assert NO_GPU not in text
    assert "gather_kv: restkv against authors" in text


def test_a_gpu_benchmark_that_ran_on_a_cpu_is_no_measurement_of_a_gpu():
    assert NO_GPU in page([row(benchmark="gpu.kernels")])


def test_what_was_counted_without_a_gpu_is_no_measurement_of_one():
    counted = [each for each in committed_rows() if each.benchmark.startswith("waits.")]
    text = page(counted)
    assert NO_GPU in text
    assert text.count("## What the host of a GPU does") == 1
    assert "waits.prompt" not in text


def test_a_row_without_a_number_is_shown_with_its_reason():
    text = page([row(value=None, failure="red: AssertionError: other positions")])
    assert "red: AssertionError: other positions" in text


def test_what_a_row_says_is_plain_text():
    failure = "<script> a|b $x_1$"
    failed = row(benchmark="gpu.layer", device="cuda", value=None, failure=failure)
    text = page([row(value=None, failure=failure), failed])
    assert text.count(r"&lt;script&gt; a\|b \$x_1\$") == text.count("script") == 3
    assert "<script>" not in text


def test_growth_is_drawn_for_time_and_memory(tmp_path):
    costs = {
        (name, unit): {1024: 1.0, 2048: 2.0, 4096: factor}
        for name, factor in (("restkv", 4.0), ("snapkv", 5.0))
        for unit in ("s", "MiB")
    }
    save_growth(tmp_path / "growth.png", costs, "of a test")
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")


def test_exponents_come_from_the_growth_rows():
    rows = [
        row(benchmark="cpu.growth", name="time", unit="s", against=None, value=size**2 * 1e-9,
            shape={"S": size})
        for size in (1024, 2048, 4096)
    ]  # fmt: skip
    found = {each.target.title: each for each in verdicts(TARGETS, with_exponents(rows))}
    exponent = found["exponent of time over length: restkv"]
    assert exponent.value == pytest.approx(2)
    assert exponent.judgement == "missed"


@pytest.mark.parametrize("name", ["$x_1$", "$x_{$", "\\alpha", "a_b%", "<b>"])
def test_a_name_is_drawn_as_it_is_written(tmp_path, monkeypatch, name):
    drawn, save = [], Figure.savefig

    def saved(figure, *args, **more):
        drawn.extend(figure.findobj(Text))
        save(figure, *args, **more)

    monkeypatch.setattr(Figure, "savefig", saved)
    costs = {(name, unit): {1024: 1.0, 2048: 2.0, 4096: 4.0} for unit in ("s", "MiB")}
    save_growth(tmp_path / "growth.png", costs, f"of {name}")

    assert [text.get_text() for text in drawn].count(name) == 2
    assert f"of {name}" in [text.get_text() for text in drawn]
    assert not any(text.get_parse_math() for text in drawn)
