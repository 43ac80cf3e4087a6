"""The page on hooks names every hook, and the example of each keeps its contract."""

import re
from pathlib import Path

import pytest

import kvpolicy.testing
from kvpolicy.kinds import KINDS

PAGE = (Path(__file__).parents[2] / "docs" / "hooks.md").read_text()
SECTIONS = dict(re.findall(r"^## (kvpolicy_\w+)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))


def test_every_hook_has_a_section():
    assert list(SECTIONS) == [kind.hook for kind in KINDS.values()]


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.name)
def test_the_example_of_a_hook_is_a_plugin_that_keeps_its_contract(kind, install_plugin):
    [source] = re.findall(r"```python\n(.*?)```", SECTIONS[kind.hook], re.DOTALL)
    install_plugin("documented", source)
    [offered] = [each for each in kvpolicy.installed(kind.name) if each.plugin == "documented"]

    cases = kvpolicy.testing.contract(plugin="documented").pytestmark[0].args[1]

    assert cases
    for case in cases:
        component, promise = case.values
        assert component == offered
        promise(component.build())
