"""Standard output has the result of a command, whatever a plugin prints."""

import json
import os
import subprocess
import sys

import pytest

from kvpolicy.commands.stdout import plugins_print_to_stderr

PRINTS = """
    import logging
    import sys

    import kvpolicy
    from kvpolicy.stages.smoothing import MeanSmoother

    log = logging.getLogger("kvpolicy-loud")
    log.addHandler(logging.StreamHandler(sys.stdout))

    def say(when):
        print("printed", when)
        sys.stdout.write(f"written {when}\\n")
        log.warning("logged %s", when)

    class Loud:
        def __repr__(self):
            say("when a default is shown")
            return "loud"

    def make(width=Loud()):
        say("when a part is built")
        return MeanSmoother()

    say("at import")

    @kvpolicy.hookimpl
    def kvpolicy_smoothers():
        say("in a hook")
        return {"loud": make}

    @kvpolicy.hookimpl
    def kvpolicy_recipes():
        return {"loud": {"scorer": "snapkv", "smoother": "loud"}}
"""
DESCRIPTOR = """
    import os
    import subprocess
    import sys

    import kvpolicy

    os.write(1, b"to the descriptor\\n")
    sys.__stdout__.write("to the first stream\\n")
    subprocess.run([sys.executable, "-c", "print('by a process')"], check=True)

    @kvpolicy.hookimpl
    def kvpolicy_recipes():
        os.write(1, b"in a hook\\n")
        return {"quiet": {"scorer": "snapkv"}}
"""


@pytest.fixture
def loud(install_plugin):
    install_plugin("loud", PRINTS)


@pytest.mark.usefixtures("loud")
def test_a_list_as_json_is_all_that_stands_on_standard_output(run):
    result = run("list", "--json")
    names = {part["name"] for part in json.loads(result.stdout)["components"]}
    assert "loud" in names
    for when in ("at import", "in a hook", "when a default is shown"):
        for how in ("printed", "written", "logged"):
            assert f"{how} {when}\n" in result.stderr


@pytest.mark.usefixtures("loud")
def test_a_table_is_all_that_stands_on_standard_output(run):
    result = run("list", "smoother")
    assert result.stdout.split()[:4] == ["kind", "name", "from", "options"]
    assert "width=loud" in result.stdout
    assert "printed" not in result.stdout
    assert "printed at import\n" in result.stderr


@pytest.mark.usefixtures("loud")
def test_the_text_is_all_that_stands_on_standard_output(run, checkpoint):
    result = run(
        "generate", "--model", str(checkpoint), "--recipe", "loud", "--max-new-tokens", "2",
        "--prompt", "ada alma",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert len(result.stdout.split()) == 2
    assert "printed when a part is built\n" in result.stderr


def test_what_is_written_to_the_descriptor_goes_to_standard_error(install_plugin, tmp_path):
    install_plugin("direct", DESCRIPTOR)
    result = subprocess.run(
        [sys.executable, "-m", "kvpolicy", "list", "recipe", "--json"],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "quiet" in {part["name"] for part in json.loads(result.stdout)["components"]}
    assert sorted(result.stderr.splitlines()) == [
        "by a process", "in a hook", "to the descriptor", "to the first stream",
    ]  # fmt: skip


def _fails_after_printing():
    with plugins_print_to_stderr():
        print("meanwhile")
        os.write(1, b"directly\n")
        raise KeyError


def test_standard_output_is_back_afterwards(capfd):
    print("before")
    with pytest.raises(KeyError):
        _fails_after_printing()
    print("after")
    os.write(1, b"at last\n")
    captured = capfd.readouterr()
    assert captured.out.splitlines() == ["before", "after", "at last"]
    assert sorted(captured.err.splitlines()) == ["directly", "meanwhile"]


CLOSED = """
import os, sys
os.close({descriptor})
from kvpolicy.commands.stdout import plugins_print_to_stderr
with plugins_print_to_stderr():
    print("meanwhile")
os.write({other}, b"done")
os._exit(0)
"""


@pytest.mark.parametrize(("descriptor", "other"), [(1, 2), (2, 1)])
def test_a_closed_descriptor_is_no_error(descriptor, other):
    code = CLOSED.format(descriptor=descriptor, other=other)
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert (result.stdout + result.stderr).endswith("done")
