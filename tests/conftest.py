"""For all tests: checked shapes, one thread, sampled grids, and plugins that a test can install."""

from __future__ import annotations

import atexit
import gc
import os
import sys
import textwrap
import types
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import PathFinder
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

try:
    from hypothesis.internal.conjecture import providers
except ImportError:  # An older Hypothesis draws no such numbers.
    providers = types.SimpleNamespace()

ROOT = Path(__file__).parents[1]
PLUGINS = sorted(folder.name for folder in (ROOT / "plugins").glob("kvpolicy_*"))

# Triton reads it when it is first imported, which PyTorch does below.
os.environ.setdefault("TRITON_INTERPRET", "0" if torch.cuda.is_available() else "1")

# The shapes in signatures are checked in tests only; this must come before the first import.
sys.path.insert(0, str(Path(__file__).parent))
# An installed package may be called benchmarks, too. Ours comes first, and has an __init__.py:
# Python would prefer any package with one.
sys.path.insert(0, str(ROOT))
shapes = import_module("shapes")
shapes.install(["kvpolicy", "kvpolicy_kernels", *PLUGINS])
COMPILED = ("kvpolicy_kernels.common.triton", "kvpolicy.prefill.flex")


class AsWritten(MetaPathFinder):
    """Imports modules that Triton or PyTorch compiles as they are written, without checks."""

    def find_spec(self, name, path=None, target=None):
        kernel = name.startswith("kvpolicy_kernels.") and name.endswith(".kernel")
        if kernel or name.startswith(COMPILED):
            return PathFinder.find_spec(name, path, target)
        return None


sys.meta_path.insert(0, AsWritten())

# Two workers on two cores gain nothing from threads of their own.
torch.set_num_threads(1)
# torch.empty then gives NaN (or the largest integer), so that what is never written shows. On a
# GPU some operations that the tests use have no deterministic form.
torch.use_deterministic_algorithms(not torch.cuda.is_available())

# Imports make millions of objects that stay: the collector would look through them again and again.
# It goes on when all tests are collected, and leaves them alone until Python ends.
gc.disable()
atexit.register(gc.unfreeze)

InstallPlugin = Callable[..., None]
# The largest ones that kvpolicy imports.
LIBRARIES = (
    *("accelerate", "hypothesis", "sympy", "torch._dynamo", "torch.onnx"),
    *("transformers.generation", "transformers.integrations", "transformers.modeling_utils"),
)
MARKERS = (
    "deep: runs in `make deep` only",
    "ray: starts a Ray cluster; runs in `make ray` only",
    "sampled(every, *axes): `make test` runs one case of `every` of the grid of these parameters, "
    "along its diagonals, so that each value of each of several axes still runs; `make deep` runs "
    "the others",
)


def pytest_configure(config: pytest.Config) -> None:
    """Register the markers, and let Hypothesis draw the same examples in any order of tests."""
    for marker in MARKERS:
        config.addinivalue_line("markers", marker)
    if config.getoption("--hypothesis-profile", None) != "deep":
        # Hypothesis also draws numbers that stand in the source of the modules that are loaded.
        # Which are depends on the tests that the same process ran before.
        no_constants = getattr(providers, "_local_constants", None)
        providers._get_local_constants = lambda: no_constants


@pytest.hookimpl(tryfirst=True)
def pytest_collection(session: pytest.Session) -> None:
    """Import large libraries before any module with checked shapes does.

    jaxtyping keeps such a module, and all that is imported meanwhile, under a name of its own, for
    which the libraries would be compiled anew. The process that only starts others needs none.
    """
    if session.config.getoption("dist", "no") == "no":
        for name in LIBRARIES:
            with suppress(ImportError):
                import_module(name)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Function]) -> None:
    """Mark as deep what is not in the sample of its grid."""
    values: dict[tuple[object, str], list[object]] = defaultdict(list)
    for item in items:
        marker = item.get_closest_marker("sampled")
        if marker is not None:
            every, *axes = marker.args
            places = (_place(item.callspec.params[axis], values[item.obj, axis]) for axis in axes)
            if sum(places) % every:
                item.add_marker("deep")


def pytest_collection_finish() -> None:
    """Let the collector see only what the tests make."""
    # Hypothesis 6.100 asks the collector for its own random state in its first run.
    given(st.none())(lambda none: None)()
    gc.freeze()
    gc.enable()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Check shapes in the first calls of each test."""
    shapes.start_test((item.path, getattr(item, "originalname", item.name)))


def _place(value: object, known: list[object]) -> int:
    """Return the place of a value among those of its axis; add it if it is new."""
    if value not in known:
        known.append(value)
    return known.index(value)


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


@pytest.fixture
def run(monkeypatch):
    from typer.testing import CliRunner

    from kvpolicy import cli

    monkeypatch.setenv("COLUMNS", "200")
    # No network: the variable HF_HUB_OFFLINE would be read too early to be set here.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return lambda *arguments, **options: CliRunner().invoke(cli.app, arguments, **options)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """Save a random Qwen3 that never stops, with the words of the needle task."""
    from kvpolicy.evaluation import needle
    from kvpolicy.testing.models import tiny_model

    folder = tmp_path_factory.mktemp("checkpoint")
    _, tokenizer = needle.load()
    tiny_model("qwen3", vocab_size=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
