"""Whatever is typed: the command does it, or says in a sentence why not, with status 1 or 2."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvpolicy.commands import demo
from kvpolicy.commands import eval as eval_command
from kvpolicy.errors import InvalidValueError, KvpolicyError
from kvpolicy.evaluation.needle import MODEL

HOSTILE = [
    *("", "-", "--", "--help", "=", ".", "..", "/", "~", "no/such", "\ud800", "[red]", "[/]", "\n"),
    *("1e400", "-1", "0", "1_000", "1,024", "25%", "%", "nan", "inf", "9" * 5000, "x" * 5000),
    *("none", "snapkv", "ashape", "float32", "cpu", "sdpa", "true", "scorer", "²", "٣"),
]
WORDS = st.one_of(
    st.text(st.characters(exclude_characters="\0"), max_size=6),
    st.integers().map(str),
    st.floats().map(str),
    st.sampled_from(HOSTILE),
)
OPTIONS = {
    "list": ["--json"],
    "demo": [
        *("--recipes", "--budgets", "--tokens", "--facts", "--prompts", "--seed"),
        *("--output", "--picture", "--model"),
    ],
    "generate": [
        *("--recipe", "--budget", "--prefill", "--prompt", "--prompt-file", "--chat", "--device"),
        *("--max-new-tokens", "--temperature", "--seed", "--dtype", "--attention", "--model"),
    ],
    "eval": [
        *("--model", "--recipes", "--budgets", "--data", "--task", "--option", "--metric"),
        *("--question", "--limit", "--max-prompt-tokens", "--baseline", "--page", "--json"),
    ],
}


OWN = {
    # Not more than there is time for.
    "--max-new-tokens": st.sampled_from(["1", "2", "0", "-1", "1.5", "many", "", "\ud800"]),
    "--temperature": st.floats().map(str),
}


@st.composite
def typed(draw, command):
    """Draw a command line: some options with some values, and now and then a stray word."""
    chosen = draw(st.lists(st.sampled_from(OPTIONS[command]), max_size=4))
    words = [word for option in chosen for word in (option, draw(OWN.get(option, WORDS)))]
    return [command, *words, *draw(st.lists(WORDS, max_size=1))]


def check_outcome(result, *, allowed=(KvpolicyError, SystemExit)):
    """Hold a command to its status, to a message, and to no traceback."""
    assert result.exception is None or isinstance(result.exception, allowed), result.exception
    assert result.exit_code in (0, 1, 2)
    assert "Traceback" not in result.output
    if result.exit_code:
        assert result.output.strip()


FUZZED = settings(
    max_examples=max(1, settings().max_examples // 4),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@FUZZED
@given(words=typed("list"))
def test_list_takes_whatever_is_typed(run, words):
    check_outcome(run(*words))


@FUZZED
@given(words=st.lists(WORDS, max_size=3))
def test_a_command_line_without_a_command_is_explained(run, words):
    check_outcome(run(*words))


@FUZZED
@given(words=typed("generate"))
def test_generate_takes_whatever_is_typed(run, checkpoint, words):
    defaults = ["--model", str(checkpoint), "--recipe", "snapkv", "--max-new-tokens", "1"]
    check_outcome(run("generate", *defaults, "--prompt", "ada alma", *words[1:], input="ada"))


@FUZZED
@given(words=typed("demo"))
def test_demo_takes_whatever_is_typed(run, monkeypatch, tmp_path, words):
    def enough(*arguments):
        raise InvalidValueError("all arguments were read")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "_compare", enough)
    check_outcome(run("demo", "--prompts", "1", *words[1:]))


@FUZZED
@given(words=typed("eval"))
def test_eval_takes_whatever_is_typed(run, monkeypatch, tmp_path, words):
    def enough(*arguments):
        raise InvalidValueError("all arguments were read")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(eval_command, "_evaluated", enough)
    given = ["--model", str(MODEL), "--recipes", "snapkv", "--budgets", "64", "--task", "needle"]
    check_outcome(run("eval", *given, *words[1:]))


@pytest.mark.parametrize("option", ["--recipe", "--budget", "--prompt-file", "--prompt"])
def test_bytes_that_are_no_text_are_explained(run, checkpoint, option):
    # Where Python decodes a byte that is no UTF-8, it makes half a surrogate pair of it.
    defaults = {"--model": str(checkpoint), "--recipe": "snapkv", "--prompt": "ada"}
    if option == "--prompt-file":
        del defaults["--prompt"]
    words = [word for pair in (defaults | {option: "\udcff"}).items() for word in pair]
    result = run("generate", *words)
    assert result.exit_code == 2
    assert "udcff" in result.stderr or "not UTF-8" in result.stderr


def test_a_traceback_never_reaches_the_terminal():
    # `list` imports least of the commands that take a name.
    command = [sys.executable, "-m", "kvpolicy", "list", b"[red]\xff[/red]"]
    done = subprocess.run(command, capture_output=True, timeout=300, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(b"there is no kind of component called '[red]\\udcff[/red]'.")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("temperature", ["nan", "inf", "1e-300"])
def test_a_temperature_that_cannot_be_is_explained(run, checkpoint, temperature):
    words = ("--model", str(checkpoint), "--recipe", "snapkv", "--prompt", "ada")
    result = run("generate", *words, "--temperature", temperature)
    assert result.exit_code == 2
    assert "--temperature" in result.stderr
