"""Every public name has a page, with a docstring to show."""

import importlib.util
import inspect
import re
from pathlib import Path

import pytest

import kvpolicy

SPEC = importlib.util.spec_from_file_location(
    "conf", Path(__file__).parents[2] / "docs" / "conf.py"
)
conf = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(conf)


# One process reads the sources for all tests.
pytestmark = pytest.mark.xdist_group("messages")


@pytest.fixture(scope="module")
def listed():
    """All messages, by the name of their error; to read the sources takes seconds."""
    return conf.messages()


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
    monkeypatch.setattr(conf, "page_of_messages", lambda: "Messages")
    conf.write_pages(None)
    names = {file.stem for file in (tmp_path / "api").glob("*.rst")} - {"index"}
    assert names == {*kvpolicy.__all__, "messages"}
    listed = (tmp_path / "api" / "index.rst").read_text().split()
    assert names <= set(listed)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: kvpolicy.recipe("snapkv", budget=16),
        lambda: kvpolicy.recipe("snapkv", budget=64.0),
        lambda: kvpolicy.recipe("snapkv", budget=64, scorer={"wide": 1}),
        lambda: kvpolicy.compose(scorer="nothing", budget=64),
        lambda: kvpolicy.recipe("tova", budget=64, allocator="adakv"),
        lambda: kvpolicy.recipe("snapkv", budget=64).cache(None),
    ],
    ids=["protected", "float", "option", "name", "heads", "model"],
)
def test_a_message_is_found_on_the_page_of_messages(wrong, listed):
    with pytest.raises(kvpolicy.KvpolicyError) as raised:
        wrong()
    texts = listed[type(raised.value).__name__]
    patterns = [".*".join(map(re.escape, text.split("…"))) for text in texts]
    assert any(re.fullmatch(each, str(raised.value), re.DOTALL) for each in patterns)


def test_every_message_that_is_explained_is_on_the_page_of_messages(listed):
    page = (Path(__file__).parents[2] / "docs/guides/troubleshooting.md").read_text("utf-8")
    every = "\n".join(text for texts in listed.values() for text in texts)
    warned = {"sinks and recent tokens protect", "skipped kvpolicy plugin"}  # no errors
    explained = set(re.findall(r"^## `(.+)`$", page, re.MULTILINE))
    assert warned < explained
    assert [each for each in explained - warned if each not in every] == []
