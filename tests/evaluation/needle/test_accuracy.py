"""Exact answers of the needle model are counted, and shown with their interval."""

import copy
import json

import pytest
import torch
import typer
from typer.testing import CliRunner

from kvpolicy.evaluation.measures.interval import wilson_interval
from kvpolicy.evaluation.needle import accuracy


def test_the_share_is_that_of_prompts_that_are_answered_exactly(reader):
    sizes = {"tokens": [96], "facts": [4], "prompts": 3, "seed": 0}
    [cell] = accuracy.measure(reader.model, reader.tokenizer, **sizes)
    assert (cell["tokens"], cell["facts"], cell["prompts"], cell["exact"]) == (96, 4, 3, 1.0)
    assert cell["interval"] == list(wilson_interval(3, 3))


def test_answers_that_are_wrong_are_not_counted(reader):
    silent = copy.deepcopy(reader.model)
    torch.nn.init.zeros_(silent.model.norm.weight)  # all words are as likely
    sizes = {"tokens": [96], "facts": [4], "prompts": 2, "seed": 0}
    [cell] = accuracy.measure(silent, reader.tokenizer, **sizes)
    assert cell["exact"] == 0


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
        for line in lines:
            low, high = line["interval"]
            assert low <= line["exact"] <= high
    else:
        assert "95 % Wilson interval" in result.stdout
