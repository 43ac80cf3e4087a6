"""The table of quantized storage, with two short prompts."""

import json

import pytest
import typer
from typer.testing import CliRunner

from kvpolicy import recipe
from kvpolicy.evaluation import needle, quantized


@pytest.fixture(scope="module")
def found(reader):
    """Two prompts, evicted by restkv, in full precision and in few bits."""
    questions = needle.generate_prompts(tokens=96, facts=4, count=2, seed=0)
    storages = [
        None,
        *(
            {"name": "quantized", "bits": bits, "backend": "minmax", "residual": 0}
            for bits in (8, 4)
        ),
    ]
    return list(quantized.measure(reader, questions, recipe("restkv", budget=40), storages))


def test_errors_grow_and_bytes_shrink_with_fewer_bits(found):
    full, eight, four = found
    assert full.error == 0
    assert 0 < eight.error < four.error / 4
    assert full.nbytes > eight.nbytes > four.nbytes
    assert full.right == eight.right == 2


def test_the_table_names_every_storage(found):
    names = [each.name for each in found]
    assert names == ["full precision", "8 bits, last 0 in full", "4 bits, last 0 in full"]
    assert quantized.table(found, "toy").row_count == 3


def test_full_precision_comes_first():
    first, *others = quantized.storages()
    assert first is None
    assert {each["bits"] for each in others} == {8, 4}


@pytest.mark.parametrize("style", ["--json", None])
def test_the_command_prints_every_storage(monkeypatch, style):
    storages = quantized.storages()[:2]
    monkeypatch.setattr(quantized, "storages", lambda: storages)
    app = typer.Typer()
    app.command()(quantized.main)
    options = "--budget 40 --tokens 96 --facts 4 --prompts 1".split()
    result = CliRunner().invoke(app, options + ([style] if style else []))
    assert result.exit_code == 0, result.output
    if style == "--json":
        lines = [json.loads(line) for line in result.stdout.splitlines()]
        assert [line["storage"] for line in lines] == storages
        assert lines[0]["error"] == 0
    else:
        assert "full precision" in result.stdout
        assert "8 bits, last 0 in full" in result.stdout
