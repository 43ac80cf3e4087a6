"""`kvpolicy memory` computes what a cache takes, without weights."""

import json

import pytest

from kvpolicy.evaluation import needle


def test_it_says_what_a_recipe_saves(run):
    given = (
        "memory",
        "--model",
        "needle",
        "--tokens",
        "1k",
        "--recipe",
        "restkv",
        "--budget",
        "64",
    )
    result = run(*given)
    assert result.exit_code == 0, result.output
    assert "kvpolicy.recipe('restkv', budget=64)" in result.output
    assert "64 positions in each of 4 layers" in result.output
    data = json.loads(run(*given, "--json").output)
    full = json.loads(run("memory", "--model", "needle", "--tokens", "1k", "--json").output)
    assert data["full"] == full["nbytes"] == full["full"]
    assert data["nbytes"] < data["full"] / 10


def test_the_config_alone_is_enough(run, tmp_path):
    file = tmp_path / "config.json"
    file.write_bytes((needle.MODEL / "config.json").read_bytes())
    texts = [
        run("memory", "--model", str(each), "--tokens", "1k").output
        for each in (file, tmp_path, "needle")
    ]
    assert len(set(texts)) == 1


@pytest.mark.parametrize("tokens", ["", "k", "0", "-5", "1.5k", "many", "9" * 50, "²"])
def test_what_is_no_number_of_tokens_is_refused(run, tokens):
    result = run("memory", "--model", "needle", f"--tokens={tokens}")
    assert (result.exit_code, "must be a number such as 8192" in result.output) == (2, True)
