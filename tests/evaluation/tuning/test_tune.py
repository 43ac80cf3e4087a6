"""A search finds a policy, goes on where it stopped, and is judged on what it never saw."""

import json

import attrs
import pytest

import kvpolicy
from kvpolicy.errors import DataError, InvalidValueError, MissingPackageError, ResultsError
from kvpolicy.evaluation import needle
from kvpolicy.evaluation.tuning import tune
from kvpolicy.evaluation.tuning.space import SPACE, beginnings, suggested

pytest.importorskip("optuna")


@attrs.frozen
class Chooses:
    """Suggests the choice at one place of each list, and one end of each range."""

    place: int

    def suggest_categorical(self, name, choices):
        return choices[self.place % len(choices)]

    def suggest_float(self, name, low, high):
        return high if self.place % 2 else low


@attrs.frozen
class Given:
    """Suggests values by their names."""

    values: dict

    def suggest_categorical(self, name, choices):
        return self.values[name]

    def suggest_float(self, name, low, high):
        return self.values[name]


@pytest.fixture(scope="module")
def data():
    prompts = needle.generate_prompts(tokens=96, facts=4, count=4, seed=0)
    return [{"prompt": each.text, "answer": each.answer} for each in prompts]


@pytest.fixture(scope="module")
def model():
    return needle.load()


def found(model, data, **changes):
    asked = {"budget": 48, "trials": 3, "recipes": ["snapkv"], "max_new_tokens": 4}
    return tune(*model, data=data, **asked | changes)


@pytest.mark.parametrize("place", range(6))
def test_what_is_suggested_makes_a_policy(place):
    arguments = suggested(Chooses(place), 0.25)
    policy = kvpolicy.compose(**arguments)
    assert policy.budget == 0.25
    for kind, choices in SPACE.items():
        assert arguments[kind]["name"] in choices


@pytest.mark.parametrize("name", ["snapkv", "restkv", "adakv", "replay", "expectedattention"])
def test_a_search_begins_with_the_recipes_that_it_could_find(name):
    wanted = kvpolicy.recipe(name, budget=64)
    begun = [suggested(Given(values), 64) for values in beginnings(64)]
    assert wanted in [kvpolicy.compose(**arguments) for arguments in begun]


def test_what_is_found_is_no_worse_than_a_recipe_that_was_tried(model, data):
    tuned, *others = found(
        model, data, trials=len(beginnings(48)), recipes=["snapkv", "replay"]
    ).lines
    assert all(tuned.score > each.score or tuned.error <= each.error for each in others)


def test_the_search_goes_on_where_it_stopped(model, data, tmp_path):
    study, done = tmp_path / "tune.journal", []
    first = found(model, data, study=study, on_trial=done.append)
    assert done == [1, 2, 3]
    assert found(model, data, study=study, on_trial=done.append) == first
    assert done == [1, 2, 3]
    found(model, data, study=study, trials=4, on_trial=done.append)
    assert done == [1, 2, 3, 4]
    other = []  # another budget has a study of its own in the same file
    found(model, data, study=study, budget=40, trials=1, on_trial=other.append)
    assert other == [1]


def test_the_winner_is_measured_on_what_was_held_out(model, data):
    tuned = found(model, data)
    assert (tuned.samples, tuned.held_out) == (2, 2)
    assert [line.name for line in tuned.lines] == ["tuned", "snapkv"]
    assert all(0 < line.held_out_error != line.error for line in tuned.lines)
    described = json.loads(json.dumps(tuned.to_dict()))["policy"]
    assert described["budget"] == 48
    assert kvpolicy.Policy.from_dict(described) == tuned.policy
    assert "| tuned |" in str(tuned)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"data": [{"prompt": "a b", "answer": "c"}] * 3}, DataError, "3 samples: give 4 or more"),
        ({"budget": kvpolicy.within(0.1)}, InvalidValueError, "within 10 % is an error target"),
        ({"trials": 0}, InvalidValueError, "trials must be 1 or more"),
        ({"held_out": 1.0}, InvalidValueError, "held_out is a share"),
    ],
)
def test_what_cannot_be_tuned_is_refused(model, data, changes, error, message):
    with pytest.raises(error, match=message):
        found(model, **{"data": data} | changes)


def test_a_file_that_is_no_study_is_refused(model, data, tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text("no journal\n")
    with pytest.raises(ResultsError, match=r"cannot use .*rows\.jsonl' as a study"):
        found(model, data, study=file)


def test_without_optuna_it_says_what_to_install(model, data, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    with pytest.raises(MissingPackageError, match=r"Install kvpolicy\[tune\]"):
        found(model, data)


def test_the_command_writes_the_policy(run, data, tmp_path):
    file, output = tmp_path / "mine.jsonl", tmp_path / "policy.json"
    file.write_text("\n".join(map(json.dumps, data)))
    result = run(
        *("tune", "--model", str(needle.MODEL), "--data", str(file), "--bytes", "50%"),
        *("--trials", "2", "--recipes", "snapkv", "--max-new-tokens", "4"),
        *("--study", str(tmp_path / "tune.journal"), "--output", str(output)),
    )
    assert result.exit_code == 0, result.output
    assert "| at 50 % | error | f1 | held-out error | held-out f1 |" in result.stdout
    assert json.loads(output.read_text())["budget"] == 0.5
