"""Options, and the sheet on which every benchmark writes its rows.

python -m pytest benchmarks/cpu [--rows FILE] [--toy] [--threads N]
"""

from __future__ import annotations

from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console

from benchmarks import rows
from benchmarks.cpu.sheet import Sheet
from benchmarks.cpu.sizes import FULL, TOY
from benchmarks.cpu.targets import target_table

SHEET = pytest.StashKey[Sheet]()


def pytest_addoption(parser):
    """Offer where rows go, toy sizes, and threads."""
    group = parser.getgroup("kvpolicy benchmarks")
    group.addoption(
        "--rows", type=Path, help="write the rows to this file, in place of what it has"
    )
    group.addoption("--toy", action="store_true", help="sizes that only show that all of it runs")
    group.addoption("--threads", type=int, default=1, help="of torch; 1 is steadiest")


def pytest_configure(config):
    """Begin an empty sheet."""
    config.stash[SHEET] = Sheet()
    # An operation that is red is not timed.
    config.addinivalue_line("filterwarnings", "ignore:Benchmark fixture was not used")


@pytest.fixture(autouse=True)
def _threads(pytestconfig):
    before = torch.get_num_threads()
    torch.set_num_threads(pytestconfig.getoption("--threads"))
    with torch.no_grad():
        yield
    torch.set_num_threads(before)


@pytest.fixture
def sheet(pytestconfig):
    """Return the session's sheet."""
    return pytestconfig.stash[SHEET]


@pytest.fixture
def sizes(pytestconfig):
    """Return how large everything is."""
    return TOY if pytestconfig.getoption("--toy") else FULL


def pytest_sessionfinish(session):
    """Write the rows down."""
    path = session.config.getoption("--rows")
    found = session.config.stash[SHEET].rows
    if path is not None and found:
        path.unlink(missing_ok=True)
        rows.write(path, found)


def pytest_terminal_summary(terminalreporter, config):
    """Compare what was measured with the targets."""
    found = config.stash[SHEET].rows
    if found:
        text = StringIO()
        Console(file=text, width=130).print(target_table(found))
        terminalreporter.write_line(f"\n{text.getvalue()}")
