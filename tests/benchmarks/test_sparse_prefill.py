"""The benchmark of sparse prefill runs at toy size, and gives no speed to what is wrong."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks import rows
from benchmarks.sparse_prefill import __main__ as sparse_prefill
from benchmarks.sparse_prefill.inputs import random_model
from benchmarks.sparse_prefill.measurement import Plan, measure
from kvpolicy.named import resolved
from kvpolicy.prefill import AShape, reference

# One process compiles for all of them.
pytestmark = pytest.mark.xdist_group("flex_attention")

ASHAPE = '{"name": "ashape", "sinks": 3, "local": 17, "block": 16}'
BOTH = (
    ASHAPE,
    '{"name": "verticalslash", "local": 17, "columns": 16, "diagonals": 16, "block": 16}',
)
LEAST = AShape().dense_up_to
TOY = ("--size", "toy", "--budget", "64", "--repeats", "1", "--threads", "1")


@pytest.mark.parametrize(
    "patterns", [(ASHAPE,), pytest.param(BOTH, marks=pytest.mark.deep)], ids=len
)
def test_it_prints_speed_density_and_bound_as_json_lines(patterns, capsys, tmp_path):
    file = tmp_path / "rows.jsonl"
    sparse_prefill.main([*TOY, "--tokens", "200", "--prefill", *patterns, "--write", str(file)])
    lines = [rows.Row.from_json(line) for line in capsys.readouterr().out.splitlines()]

    assert lines == rows.read(file)
    assert [(line.name, line.variant) for line in lines] == [
        (name, json.loads(pattern)["name"])
        for pattern in patterns
        for name in ("prefill", "attention")
    ]
    for line in lines:
        said = line.settings
        assert line.value == pytest.approx(said["dense_seconds"] / said["sparse_seconds"])
        assert said["share_of_bound"] == pytest.approx(line.value / said["bound"])
        assert 0 < said["density"] < 1
        if line.name == "prefill":
            share = said["attention_share"]
            bound = 1 / (1 - share + share * said["density"])
            assert said["bound"] == pytest.approx(bound)


def test_without_patterns_it_measures_every_default_pattern(capsys):
    sparse_prefill.main([*TOY, "--tokens", "30"])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    assert [line["variant"] for line in lines] == ["ashape", "verticalslash"]
    assert all("leaves nothing out" in line["failure"] for line in lines)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_default_patterns_of_a_device_are_installed(device):
    for given in sparse_prefill.parsed(["--device", device]).prefill:
        pattern = json.loads(given) if given.startswith("{") else given
        assert resolved("prefill_pattern", pattern).part.dense_up_to > 0


def test_wrong_attention_gets_no_speed(capsys, monkeypatch):
    right = reference.block_attention
    monkeypatch.setattr(
        reference, "block_attention", lambda *args, **more: right(*args, **more) * 1.1
    )
    sparse_prefill.main([*TOY, "--tokens", "200", "--prefill", ASHAPE])
    (line,) = capsys.readouterr().out.splitlines()

    assert json.loads(line)["value"] is None
    assert json.loads(line)["failure"].startswith("red: attention differs")


def test_attention_that_does_not_compile_gets_no_speed():
    model = random_model("toy", None, torch.float64, "cpu")
    line, *more = measure(model, 200, ASHAPE, Plan())

    assert line.value is None
    assert line.failure.startswith("red: ")
    assert not more


def test_a_prompt_that_is_read_densely_gets_no_speed(capsys):
    sparse_prefill.main([*TOY, "--tokens", "30", "--prefill", "ashape", "--table"])
    table = capsys.readouterr().out

    assert f"| 30 | ashape | prefill | the pattern leaves nothing out of up to {LEAST} to" in table
