"""The house stays as CONTRIBUTING.md describes it."""

import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CONFIGURATION = tomllib.loads((ROOT / "pyproject.toml").read_text())
PLUGINS = sorted(folder.name for folder in (ROOT / "plugins").glob("kvpolicy_*"))


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


@pytest.mark.parametrize("folder", ["kernels", "plugins", "tests", "benchmarks"])
def test_a_folder_of_packages_is_no_package(folder):
    assert not (ROOT / folder / "__init__.py").exists()
