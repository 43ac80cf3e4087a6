"""Every public name has a page, with a docstring to show."""

import importlib.util
import inspect
from pathlib import Path

import pytest

import kvpolicy

SPEC = importlib.util.spec_from_file_location(
    "conf", Path(__file__).parents[2] / "docs" / "conf.py"
)
conf = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(conf)


@pytest.mark.parametrize("name", sorted(kvpolicy.__all__))
def test_a_public_name_has_a_page(name):
    page = conf.page_of(name)
    assert page.startswith(f"kvpolicy.{name}\n====")
    found = getattr(kvpolicy, name)
    if inspect.isclass(found) or inspect.isfunction(found):
        assert f":: {found.__name__}\n" in page
        assert inspect.getdoc(found)
        members = vars(found).items() if inspect.isclass(found) else ()
        bare = [
            each
            for each, member in members
            if not each.startswith("_")
            and (inspect.isfunction(member) or isinstance(member, property))
            and not inspect.getdoc(getattr(found, each))
        ]
        assert bare == []


def test_pages_are_written_for_all_and_are_listed(tmp_path, monkeypatch):
    monkeypatch.setattr(conf, "DOCS", tmp_path)
    conf.write_pages(None)
    names = {file.stem for file in (tmp_path / "api").glob("*.rst")} - {"index"}
    assert names == set(kvpolicy.__all__)
    listed = (tmp_path / "api" / "index.rst").read_text().split()
    assert names <= set(listed)
