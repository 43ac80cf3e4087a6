"""What every test stands on: checked shapes, one thread, and plugins that a test can install."""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Callable, Iterator
from importlib.abc import MetaPathFinder
from importlib.machinery import PathFinder
from pathlib import Path

import jaxtyping
import pytest
import torch

ROOT = Path(__file__).parents[1]
PLUGINS = sorted(folder.name for folder in (ROOT / "plugins").glob("kvpolicy_*"))

# The shapes in signatures are checked in tests only; this must come before the first import.
CHECKED = ("a_shape", "blocks", "last_attention", "reference", "vertical_slash")
PREFILL = [f"kvpolicy.prefill.{module}" for module in CHECKED]  # flex compiles its functions
jaxtyping.install_import_hook(
    ["kvpolicy.observation", "kvpolicy.stages", *PREFILL, "kvpolicy_kernels", *PLUGINS],
    "beartype.beartype",
)


class AsWritten(MetaPathFinder):
    """Imports modules that Triton compiles as they are written, without checks."""

    def find_spec(self, name, path=None, target=None):
        compiled = name.endswith(".kernel") or name.startswith("kvpolicy_kernels.common.triton")
        if name.startswith("kvpolicy_kernels.") and compiled:
            return PathFinder.find_spec(name, path, target)
        return None


sys.meta_path.insert(0, AsWritten())

# Triton reads it when it is first imported, which torch.use_deterministic_algorithms does.
os.environ.setdefault("TRITON_INTERPRET", "0" if torch.cuda.is_available() else "1")

# Two workers on two cores gain nothing from threads of their own.
torch.set_num_threads(1)
# torch.empty then gives NaN (or the largest integer), so that what is never written shows. On a
# GPU some operations that the tests use have no deterministic form.
torch.use_deterministic_algorithms(not torch.cuda.is_available())

InstallPlugin = Callable[..., None]


@pytest.fixture
def install_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[InstallPlugin]:
    """Install a distribution `kvpolicy-NAME` with one plugin, made of `source`, for one test."""
    from kvpolicy.discovery import registry

    monkeypatch.syspath_prepend(tmp_path)
    modules = set(sys.modules)

    def install(name: str, source: str, *, version: str = "1.0", plugin: str | None = None) -> None:
        module = f"kvpolicy_{name}_for_a_test"
        (tmp_path / f"{module}.py").write_text(textwrap.dedent(source))
        metadata = tmp_path / f"kvpolicy_{name}-{version}.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: kvpolicy-{name}\nVersion: {version}\n"
        )
        (metadata / "entry_points.txt").write_text(f"[kvpolicy]\n{plugin or name} = {module}\n")
        registry.refresh()

    yield install
    registry.refresh()
    for name in set(sys.modules) - modules:
        if name.endswith("_for_a_test"):
            del sys.modules[name]
