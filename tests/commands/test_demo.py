"""`kvpolicy demo` compares all recipes, writes a page, and says what was seen."""

from __future__ import annotations

import json

import pytest

SMALL = ("demo", "--tokens", "64", "--facts", "3", "--prompts", "2", "--budgets", "16,40")


@pytest.fixture
def small(run, tmp_path):
    page = tmp_path / "page.html"
    return lambda *more: (run(*SMALL, "--output", str(page), *more), page)


@pytest.fixture
def few(monkeypatch):
    """Leave some recipes installed: all of them take a minute."""
    from kvpolicy.discovery import registry

    others = {part.plugin for part in registry.installed()} - {"core", "restkv", "streamingllm"}
    monkeypatch.setenv("KVPOLICY_BLOCK_PLUGINS", ",".join(others))
    registry.refresh()
    yield
    monkeypatch.undo()
    registry.refresh()


@pytest.mark.deep
def test_all_recipes_are_compared(small):
    _assert_table_page_and_next_step(small, "--recipes", "all")


@pytest.mark.usefixtures("few")
def test_the_table_the_page_and_the_next_step_are_given(small):
    _assert_table_page_and_next_step(small)


def _assert_table_page_and_next_step(small, *more):
    result, page = small(*more)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].split()[:3] == ["policy", "budget", "right"]
    assert lines[1].startswith("full cache")
    assert any(line.split() == ["restkv", "16", "refused"] for line in lines)
    assert any(line.startswith("With 16 of 64 positions (25 %), ") for line in lines)
    assert f"The page: {page}" in lines
    assert lines[-1].startswith("Next: kvpolicy generate --model PATH_OR_ID --recipe ")
    assert "--tokens 64 --facts 3 --prompts 2 --seed 0" in page.read_text()


@pytest.mark.usefixtures("few")
def test_json_is_all_that_stands_on_standard_output(small):
    result, page = small("--json")
    data = json.loads(result.stdout)
    assert {row["budget"] for row in data["rows"]} == {None, 16, 40}
    assert "The page: " in result.stderr
    assert page.exists()


@pytest.mark.usefixtures("few")
def test_the_pictures_are_written_where_they_are_wanted(small, tmp_path):
    result, _ = small("--picture", str(tmp_path / "both.svg"))
    assert result.exit_code == 0
    assert "<svg" in (tmp_path / "both.svg").read_text()


@pytest.mark.usefixtures("few")
def test_an_installed_recipe_takes_part_without_being_named(small, install_plugin):
    install_plugin(
        "latest",
        """
        from kvpolicy import hookimpl

        @hookimpl
        def kvpolicy_recipes():
            return {"latest": {"scorer": "streamingllm", "recent": 8}}
        """,
    )
    result, page = small("--budgets", "25%", "--recipes", "all")
    assert any(line.split()[:2] == ["latest", "16"] for line in result.stdout.splitlines())
    assert "latest" in page.read_text()


def test_the_recipes_of_the_paper_are_compared_where_none_is_named(small):
    result, _ = small("--json", "--budgets", "40", "--prompts", "1")
    names = [row["name"] for row in json.loads(result.stdout)["rows"]]
    assert names == [
        *("full cache", "streamingllm", "h2o", "tova", "snapkv", "pyramidkv", "restkv"),
    ]


def test_no_other_recipe_runs_than_those_that_are_named(small, monkeypatch):
    from kvpolicy.evaluation.runs import engine

    policies = []
    answers = engine.answers

    def heard(*given):
        policies.append(given[-1])
        return answers(*given)

    monkeypatch.setattr(engine, "answers", heard)
    result, page = small("--recipes", "knorm", "--budgets", "16", "--json")
    assert [row["name"] for row in json.loads(result.stdout)["rows"]] == ["full cache", "knorm"]
    assert {policy and policy.titles["scorer"].name for policy in policies} == {None, "knorm"}
    assert "kvpolicy demo --recipes knorm --budgets 16 " in page.read_text()


def test_a_policy_in_a_file_takes_part(small, tmp_path):
    import kvpolicy

    file = tmp_path / "mine.json"
    file.write_text(json.dumps(kvpolicy.compose(scorer="knorm", budget=9, recent=2).to_dict()))
    result, _ = small("--recipes", str(file), "--budgets", "16", "--json")
    assert [row["name"] for row in json.loads(result.stdout)["rows"]] == ["full cache", "mine"]


def test_another_model_may_read_the_prompts(small):
    from kvpolicy.evaluation.needle import MODEL

    result, page = small("--model", str(MODEL), "--recipes", "streamingllm", "--budgets", "16")
    assert result.exit_code == 0, result.output
    assert f"--model {MODEL}" in page.read_text()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--budgets", ","), "--budgets is empty"),
        (("--budgets", "many"), "budget must be positions (1024) or a share"),
        (("--facts", "50"), "50 facts do not fit a prompt of 64 tokens"),
        (("--tokens", "1000000"), "the demo's model reads at most"),
        (("--recipes", ","), "--recipes names none"),
        (("--recipes", "snpakv"), "no recipe named 'snpakv'. Did you mean 'snapkv'?"),
        (("--recipes", "no.json"), "cannot read the policy in 'no.json'"),
        (("--model", "./nowhere"), "there is no folder './nowhere'"),
        (("--picture", "both.jpg"), "--picture must end in one of .pdf, .png, .svg"),
        (("--output", "not/there.html"), "Give a file in a folder that exists"),
    ],
)
def test_what_cannot_be_is_said_in_a_sentence(small, arguments, sentence):
    result, _ = small(*arguments)
    assert result.exit_code == 2
    assert sentence in result.stderr
    assert result.stdout == ""


def test_budgets_that_no_recipe_accepts_are_said_to_be_so(small, monkeypatch):
    from kvpolicy.discovery import registry

    others = {part.plugin for part in registry.installed()} - {"core", "restkv"}
    monkeypatch.setenv("KVPOLICY_BLOCK_PLUGINS", ",".join(others))
    registry.refresh()
    try:
        result, _ = small("--budgets", "16")
    finally:
        monkeypatch.undo()
        registry.refresh()
    assert result.exit_code == 2
    assert "no recipe could be compared. budget 16 is smaller" in result.stderr
