"""A name is plain ASCII in lower case, so that no two names look alike."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvpolicy import errors, installed
from kvpolicy.discovery import registry
from kvpolicy.discovery.name import LONGEST, check_name, escaped

OFFER = """
    import kvpolicy
    from kvpolicy.stages.smoothing import MeanSmoother

    @kvpolicy.hookimpl
    def kvpolicy_{hook}():
        return {{{name!a}: {offer}}}
"""
OFFERS = {"smoothers": "MeanSmoother", "recipes": "{'scorer': 'snapkv'}"}
FAULTS = {
    "": "it is empty",
    " ": "it starts or ends with white space",
    " snapkv": "it starts or ends with white space",
    "snapkv\t": "it starts or ends with white space",
    "snapkv\u00a0": "it starts or ends with white space",
    "snapkv\u200b": "it has the character U+200B (ZERO WIDTH SPACE)",
    "\ufeffsnapkv": "it has the character U+FEFF (ZERO WIDTH NO-BREAK SPACE)",
    "snap\u00adkv": "it has the character U+00AD (SOFT HYPHEN)",
    "sn\u0430pkv": "it has the character U+0430 (CYRILLIC SMALL LETTER A)",
    "snapk\u1d5b": "it has the character U+1D5B (MODIFIER LETTER SMALL V)",
    "\uff53napkv": "it has the character U+FF53 (FULLWIDTH LATIN SMALL LETTER S)",
    "h\u0662o": "it has the character U+0662 (ARABIC-INDIC DIGIT TWO)",
    "SnapKV": "it has the upper-case letter 'S'",
    "snap\x1b[31mkv": "it has the character U+001B (which has no name)",
    "snap\x00kv": "it has the character U+0000 (which has no name)",
    "snap kv": "it has the character U+0020 (SPACE)",
    "$x_1$": "it has the character U+0024 (DOLLAR SIGN)",
    "a|b": "it has the character U+007C (VERTICAL LINE)",
    "<b>": "it has the character U+003C (LESS-THAN SIGN)",
    "-snapkv": "it starts with '-'",
    "..": "it starts with '.'",
    "x" * 65: "it has 65 characters",
    "x" * 100_000: "it has 100,000 characters",
}


def _id(value):
    return ascii(value[:12])


@pytest.mark.parametrize(("name", "fault"), FAULTS.items(), ids=_id)
def test_a_faulty_name_is_refused_in_one_line_of_ascii(name, fault):
    with pytest.raises(errors.InvalidComponentError) as caught:
        check_name(name, "kvpolicy_scorers")
    message = str(caught.value)
    assert f" as a name, but {fault}; a name has 1 to 64 characters a-z, 0-9" in message
    assert message.replace("…", "").isascii()
    assert len(message.splitlines()) == 1
    assert len(message) < 600


@pytest.mark.parametrize("name", ["restkv", "h2o", "my-method_2.1", "2d", "x" * LONGEST])
def test_a_plain_name_is_allowed(name):
    check_name(name, "kvpolicy_scorers")


def test_what_is_no_string_is_refused():
    with pytest.raises(errors.InvalidComponentError, match=r"gives b'a' as a name, but it is no s"):
        check_name(b"a", "kvpolicy_scorers")


def test_a_string_cannot_hide_what_it_holds():
    class Hides(str):
        __slots__ = ()

        def __str__(self):
            return "snapkv"

    with pytest.raises(errors.InvalidComponentError, match=r"U\+200B"):
        check_name(Hides("snapkv\u200b"), "kvpolicy_scorers")


@given(st.text(max_size=80))
def test_a_name_that_is_allowed_is_equal_to_all_its_forms(name):
    try:
        check_name(name, "a test")
    except errors.InvalidComponentError:
        return
    assert name.isascii()
    assert name == name.strip() == name.lower()
    assert 0 < len(name) <= LONGEST


@given(st.text())
def test_an_escaped_name_is_ascii(name):
    assert escaped(name).removesuffix("…").isascii()


@pytest.mark.parametrize("hook", OFFERS)
@pytest.mark.parametrize("name", ["snapkv ", "sn\u0430pkv", "SnapKV", "snapkv\u200b", "", "a\nb"])
def test_a_plugin_that_gives_a_faulty_name_is_skipped(install_plugin, hook, name):
    before = installed()
    install_plugin("faulty", OFFER.format(hook=hook, name=name, offer=OFFERS[hook]))
    with pytest.warns(errors.BrokenPluginWarning, match="skipped kvpolicy plugin 'faulty'"):
        assert installed() == before
    [faulty] = registry.broken()
    assert f"kvpolicy_{hook} gives {name!a} as a name, but it " in faulty.reason


@pytest.mark.parametrize("plugin", ["sn\u0430pkv", "SnapKV", "snapkv\u200b", "x" * 100])
def test_a_plugin_with_a_faulty_name_is_never_imported(install_plugin, plugin):
    install_plugin("faulty", "raise AssertionError('imported')", plugin=plugin)
    with pytest.warns(errors.BrokenPluginWarning) as caught:
        installed()
    [faulty] = registry.broken()
    assert f"its entry point gives {plugin!a} as a name, but it has " in faulty.reason
    assert str(caught[0].message).isascii()


def test_a_faulty_name_is_listed_in_one_line(install_plugin, run):
    install_plugin("faulty", OFFER.format(hook="recipes", name="a\nb", offer=OFFERS["recipes"]))
    assert "gives 'a\\nb' as a name" in run("list").output.splitlines()[-1]
    [faulty] = json.loads(run("list", "--json").output)["broken"]
    assert len(faulty["reason"].splitlines()) == 1


def test_a_look_alike_of_an_installed_name_is_shown_escaped():
    with pytest.raises(errors.UnknownComponentError) as caught:
        registry.find("scorer", "sn\u0430pkv")
    assert str(caught.value).startswith(
        r"no scorer named 'sn\u0430pkv'. Did you mean 'snapkv'? Installed: "
    )
