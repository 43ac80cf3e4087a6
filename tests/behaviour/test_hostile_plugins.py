"""A plugin that is hostile when it is imported, listed or built from harms nobody but itself."""

from __future__ import annotations

import json
import logging
import sys
import threading
import types

import pytest
from typer.testing import CliRunner

import kvpolicy
from kvpolicy import cli, errors, installed
from kvpolicy.discovery import registry, slow_import

OFFER = """
    import kvpolicy
    {before}

    @kvpolicy.hookimpl
    def kvpolicy_{kind}s():
        return {{{offer}}}
"""
BROKEN = {
    "an_error_that_cannot_be_printed": (
        "class Mute(Exception):\n    def __str__(self): raise RuntimeError\nraise Mute",
        "Mute: it does not say why",
    ),
    "a_name_that_cannot_be_printed": (
        OFFER.format(before="", kind="scorer", offer="'\\ud800': dict"),
        "gives '\\ud800' as a name, but it has the character U+D800 (which has no name);",
    ),
    "a_name_of_two_lines": (
        OFFER.format(before="", kind="scorer", offer="'a\\nb': dict"),
        "gives 'a\\nb' as a name, but it has the character U+000A (which has no name);",
    ),
    "a_recipe_that_cannot_be_copied": (
        OFFER.format(
            before="", kind="recipe", offer="'mine': {'scorer': 'snapkv', 'budget': iter([])}"
        ).replace("iter([])", "(x for x in [])"),
        "recipe 'mine' cannot be copied and printed (TypeError",
    ),
    "a_recipe_that_cannot_be_listed": (
        OFFER.format(
            before="", kind="recipe", offer="'mine': {'scorer': {'name': 'snapkv', (1, 2): 3}}"
        ),
        "recipe 'mine' cannot be copied and printed (TypeError",
    ),
    "a_mapping_that_fails": (
        """
        import kvpolicy
        from collections.abc import Mapping

        class Fails(Mapping):
            def __getitem__(self, name): raise ZeroDivisionError
            def __iter__(self): raise ZeroDivisionError("no names")
            def __len__(self): return 1

        @kvpolicy.hookimpl
        def kvpolicy_scorers():
            return Fails()
        """,
        "ZeroDivisionError: no names",
    ),
}


@pytest.mark.parametrize(("source", "reason"), BROKEN.values(), ids=BROKEN)
def test_a_hostile_plugin_is_broken_and_hides_no_other(install_plugin, source, reason):
    before = installed()
    install_plugin("hostile", source)
    with pytest.warns(errors.BrokenPluginWarning, match="skipped kvpolicy plugin 'hostile'"):
        assert installed() == before
    [hostile] = registry.broken()
    assert reason in hostile.reason
    assert str(hostile).startswith("'hostile' (kvpolicy-hostile 1.0): ")


def part(before, offer):
    """The source of a plugin that offers a smoother."""
    return OFFER.format(before=before, kind="smoother", offer=f"'hostile': {offer}")


HOSTILE_DEFAULT = """
    class Mute:
        def __repr__(self): raise RuntimeError

    def make(width=Mute()): raise NotImplementedError
"""


def test_a_default_that_cannot_be_printed_is_listed_all_the_same(install_plugin):
    install_plugin("hostile", part(HOSTILE_DEFAULT, "make"))
    table = CliRunner(env={"COLUMNS": "200"}).invoke(cli.app, ["list", "smoother"])
    assert "width=<Mute that has no repr>" in table.output
    data = CliRunner().invoke(cli.app, ["list", "--json"])
    assert "<Mute that has no repr>" in data.output
    assert {"mean", "hostile"} <= {each["name"] for each in json.loads(data.output)["components"]}


@pytest.mark.parametrize(
    ("body", "error", "message"),
    [
        ("raise SystemExit(3)", errors.ComponentFailedError, "could not be built: SystemExit: 3"),
        ("raise OSError('gone')", errors.ComponentFailedError, "could not be built: OSError: gone"),
        ("raise ValueError(10 ** 5000)", errors.KvpolicyError, "smoother 'hostile'"),
        ("return 3", errors.InvalidComponentError, "built a int, which lacks temporal, spatial"),
    ],
)
def test_a_part_that_cannot_be_built_is_named(install_plugin, body, error, message):
    install_plugin("hostile", part(f"def make(): {body}", "make"))
    with pytest.raises(error, match="hostile") as caught:
        kvpolicy.compose(scorer="snapkv", smoother="hostile")
    assert message in str(caught.value)
    assert kvpolicy.compose(scorer="snapkv", smoother="mean")


SAYS = """
    from kvpolicy.stages.smoothing import MeanSmoother

    class Says(MeanSmoother):
        window = 4

        @property
        def {demand}(self): raise ZeroDivisionError("on purpose")

        def score(self, observation, reduce): raise NotImplementedError
"""


@pytest.mark.parametrize("demand", ["across_heads", "prefill_only", "window"])
def test_a_part_that_fails_to_say_what_it_demands_is_named(install_plugin, demand):
    kind = "scorer" if demand == "window" else "smoother"
    source = OFFER.format(before=SAYS.format(demand=demand), kind=kind, offer="'hostile': Says")
    install_plugin("hostile", source)
    parts = {"scorer": "snapkv", "allocator": "adakv", "every": 1} | {kind: "hostile"}
    with pytest.raises(errors.ComponentFailedError, match=r"hostile.*ZeroDivisionError") as caught:
        kvpolicy.compose(**parts)
    assert "of plugin 'hostile' (kvpolicy-hostile 1.0)" in str(caught.value)


@pytest.fixture
def said(monkeypatch):
    """Collect what is logged, and open the gate that a slow import waits at once something is."""
    gate = types.ModuleType("gate_for_a_test")
    gate.opened, messages = threading.Event(), []
    monkeypatch.setitem(sys.modules, gate.__name__, gate)

    class Opens(logging.Handler):
        def emit(self, record):
            messages.append(record.getMessage())
            gate.opened.set()

    handler = Opens()
    logging.getLogger("kvpolicy").addHandler(handler)
    yield messages
    logging.getLogger("kvpolicy").removeHandler(handler)


WAITS = "import gate_for_a_test\nassert gate_for_a_test.opened.wait(60)\n"


def test_a_plugin_that_hangs_on_import_is_named_with_a_way_out(install_plugin, said, monkeypatch):
    monkeypatch.setattr(slow_import, "SECONDS", 0.01)
    install_plugin("slow", WAITS + "raise ImportError('at last')")
    with pytest.warns(errors.BrokenPluginWarning, match="at last"):
        assert kvpolicy.compose(scorer="snapkv")
    # Others, too, may take longer than the blink of an eye that is allowed here.
    [slow] = [message for message in said if "'slow'" in message]
    assert slow == (
        "plugin 'slow' (kvpolicy-slow 1.0) has been importing for 0.01 s. To skip it, set "
        "KVPOLICY_BLOCK_PLUGINS=slow and start again"
    )


def test_a_plugin_that_hangs_on_import_can_be_done_without(install_plugin, monkeypatch):
    monkeypatch.setenv(registry.BLOCK, "slow")
    install_plugin("slow", "while True: pass")
    assert kvpolicy.compose(scorer="snapkv")


def test_nothing_is_said_of_plugins_that_are_quick(said):
    registry.refresh()
    assert installed()
    assert said == []
    assert not [each for each in threading.enumerate() if isinstance(each, threading.Timer)]
