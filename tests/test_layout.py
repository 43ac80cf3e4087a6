"""The house stays as CONTRIBUTING.md describes it."""

import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import kvpolicy_kernels

sys.path.insert(0, str(Path(__file__).parent))
from imports import ROOT, circles, imported, modules

CONFIGURATION = tomllib.loads((ROOT / "pyproject.toml").read_text())
PLUGINS = sorted(folder.name for folder in (ROOT / "plugins").glob("kvpolicy_*"))
MODULES = modules()
LONGEST = 250
SOURCES = [
    file
    for folder in ("kvpolicy", "kernels", "plugins", "benchmarks", "examples")
    for file in sorted((ROOT / folder).rglob("*.py"))
]
ENGINES = {"transformers", "vllm"}
BESIDE = {"behaviour", "benchmarks", "deep", "docs", "examples", "kernels", "plugins"}
"""Folders of tests that do not mirror a folder of kvpolicy: see the tests below."""

UNTESTED = {"torch"}
"""Packages whose lower bound is below the version that `make oldest` tests."""


def _requirements():
    """The requirements of kvpolicy and its tests; not the tools that `make check` runs."""
    project = CONFIGURATION["project"]
    extras = project["optional-dependencies"]
    texts = project["dependencies"] + [
        text for extra, more in extras.items() if extra != "dev" for text in more
    ]
    found = [Requirement(text) for text in texts]
    return [each for each in found if each.name != project["name"]]


def _oldest():
    """The version that constraints-oldest.txt pins, by package."""
    lines = (ROOT / "constraints-oldest.txt").read_text().splitlines()
    pins = [line.partition("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): Version(version) for name, _, version in pins}


@pytest.mark.parametrize("requirement", _requirements(), ids=lambda each: each.name)
def test_the_lower_bound_of_a_dependency_is_the_version_that_is_tested(requirement):
    [bound] = [each.version for each in requirement.specifier if each.operator == ">="]
    tested = _oldest()[canonicalize_name(requirement.name)]
    if requirement.name in UNTESTED:
        assert Version(bound) < tested
        assert tested in requirement.specifier
    else:
        assert Version(bound) == tested


@pytest.mark.parametrize("plugin", PLUGINS)
def test_every_plugin_has_an_entry_point(plugin):
    entry_points = CONFIGURATION["project"]["entry-points"]["kvpolicy"]
    assert entry_points.get(plugin.removeprefix("kvpolicy_")) == plugin


@pytest.mark.parametrize("plugin", PLUGINS)
def test_the_layers_of_every_plugin_are_checked(plugin):
    linter = CONFIGURATION["tool"]["importlinter"]
    assert plugin in linter["root_packages"]
    assert plugin in linter["contracts"][0]["layers"][0].split(" | ")


@pytest.mark.parametrize("plugin", PLUGINS)
def test_every_plugin_says_what_it_implements(plugin):
    assert (ROOT / "plugins" / plugin / "README.md").is_file()


@pytest.mark.parametrize("folder", ["kernels", "plugins", "tests"])
def test_a_folder_of_packages_is_no_package(folder):
    assert not (ROOT / folder / "__init__.py").exists()


def test_no_module_imports_another_in_a_circle():
    graph = {
        name: sorted((imported(file, MODULES) & set(MODULES)) - {name})
        for name, file in MODULES.items()
    }
    assert circles(graph) == []


def test_circles_are_found():
    assert circles({"a": ["b"], "b": ["c"], "c": ["a"], "d": ["a"]}) == [["a", "b", "c"]]


def test_the_cache_knows_no_engine():
    for name, file in MODULES.items():
        if name.startswith(("kvpolicy.cache", "kvpolicy.pipeline", "kvpolicy.stages")):
            roots = {each.partition(".")[0] for each in imported(file)}
            assert not roots & ENGINES, f"{name} imports {roots & ENGINES}"


def test_no_module_is_longer_than_250_lines():
    for file in SOURCES:
        assert len(file.read_text().splitlines()) <= LONGEST, file


def _subject(test):
    """The module or package of kvpolicy that a test's path repeats."""
    place = test.relative_to(ROOT / "tests").with_name(test.name.removeprefix("test_"))
    return ROOT / "kvpolicy" / place


def test_the_path_of_a_test_repeats_its_subjects():
    for test in sorted((ROOT / "tests").rglob("test_*.py")):
        if test.relative_to(ROOT / "tests").parts[0] not in {*BESIDE, "test_layout.py"}:
            subject = _subject(test)
            assert subject.is_file() or subject.with_suffix("").is_dir(), test


@pytest.mark.parametrize("folder", ["kernels", "plugins"])
def test_tests_of_packages_are_named_like_a_room_or_a_package(folder):
    general = {
        "kernels": {"importing", "memory", "offline", "signatures"},
        "plugins": {"contracts", "golden", "sinks", "refused_options"},
    }[folder]
    names = (
        general
        | {
            "kernels": {*kvpolicy_kernels.__all__, "backend"},
            "plugins": {plugin.removeprefix("kvpolicy_") for plugin in PLUGINS},
        }[folder]
    )
    for test in (ROOT / "tests" / folder).glob("test_*.py"):
        name = test.stem.removeprefix("test_")
        assert any(name == each or name.startswith(f"{each}_") for each in names), test.name
