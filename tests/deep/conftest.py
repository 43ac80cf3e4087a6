"""Counts the random examples of each promise, usage and machine, and prints the counts.

`make deep` draws KVPOLICY_DEEP_EXAMPLES new examples of each. `make test` draws a few, always the
same.
"""

from __future__ import annotations

import os
from collections import Counter

import pytest
import torch
from hypothesis import HealthCheck, Phase, settings
from rich.console import Console
from rich.table import Table

FEW = 2
COUNTS: Counter[tuple[str, str, str]] = Counter()

settings.register_profile(
    "deep",
    max_examples=int(os.environ.get("KVPOLICY_DEEP_EXAMPLES", "1000")),
    deadline=None,
    database=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)
settings.register_profile(
    "shallow",
    max_examples=FEW,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
)


def is_deep():
    return settings.get_current_profile_name() == "deep"


@pytest.fixture
def profile():
    """Return the settings by which examples are drawn."""
    return settings.get_profile("deep" if is_deep() else "shallow")


@pytest.fixture
def count():
    """Return a function that counts examples by their outcome."""

    def add(kind, name, outcome="ran", number=1):
        COUNTS[kind, name, outcome] += number

    return add


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


def pytest_sessionfinish(session):
    if hasattr(session.config, "workeroutput"):
        found = [[*key, number] for key, number in COUNTS.items()]
        session.config.workeroutput["kvpolicy_examples"] = found


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    for *key, number in getattr(node, "workeroutput", {}).get("kvpolicy_examples", []):
        COUNTS[tuple(key)] += number


def pytest_terminal_summary(terminalreporter):
    if not is_deep():
        return
    table = Table("", "examples", "refused", box=None, pad_edge=False, header_style="bold")
    for kind, name in dict.fromkeys((kind, name) for kind, name, _ in COUNTS):
        ran, refused, within = (COUNTS[kind, name, how] for how in ("ran", "refused", "within"))
        table.add_row(f"{kind} {name}", str(ran or within), str(refused or ""))
    total = sum(number for (*_, how), number in COUNTS.items() if how == "ran")
    table.add_row("all", str(total), "")
    terminalreporter.section("examples that ran")
    Console(file=terminalreporter._tw._file, width=110).print(table)
