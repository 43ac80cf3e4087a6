"""Exact answers of the needle model are counted in batches, and shown with their interval."""

import json

import attrs
import pytest
import typer
from typer.testing import CliRunner

from kvpolicy.evaluation.needle import accuracy, generate_prompts


def test_answers_are_counted_over_all_batches(reader, monkeypatch):
    monkeypatch.setattr(accuracy, "BATCH_TOKENS", 2 * 96)
    prompts = generate_prompts(tokens=96, facts=4, count=3, seed=0)
    assert accuracy.count_correct(reader.model, reader.tokenizer, prompts, 96) == 3
    wrong = [attrs.evolve(prompts[0], answer="not said"), *prompts[1:]]
    assert accuracy.count_correct(reader.model, reader.tokenizer, wrong, 96) == 2


@pytest.mark.parametrize("style", ["--json", None])
def test_the_command_measures_each_length_with_each_number_of_facts(style):
    app = typer.Typer()
    app.command()(accuracy.main)
    options = "--tokens 64,96 --facts 3,4 --prompts 1".split()
    result = CliRunner().invoke(app, options + ([style] if style else []))
    assert result.exit_code == 0, result.output
    if style == "--json":
        lines = [json.loads(line) for line in result.stdout.splitlines()]
        assert [(line["tokens"], line["facts"]) for line in lines] == [
            (64, 3), (64, 4), (96, 3), (96, 4)
        ]  # fmt: skip
        assert all(line["low"] <= line["exact"] <= line["high"] for line in lines)
    else:
        assert "95 % Wilson interval" in result.stdout
