"""The tasks that ship with lm-evaluation-harness, where it is installed."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml


class Loader(yaml.SafeLoader):
    """Reads lm_eval's files, which name functions."""


Loader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))


@pytest.fixture
def shipped():
    """Read a file of lm_eval's tasks: the fields of a .yaml, and where the file is."""
    found = find_spec("lm_eval")
    if found is None:
        # `make oldest` installs no lm_eval. `make test` does, and compares with its files.
        pytest.skip("lm_eval is not installed: pip install kvpolicy[eval]")

    def read(name):
        file = Path(found.origin).parent / "tasks" / name
        return yaml.load(file.read_text(), Loader), file

    return read
