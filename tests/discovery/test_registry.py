"""Plugins are found, described and kept apart; a broken one harms nobody but itself."""

import warnings

import attrs
import pytest

from kvpolicy import errors, installed
from kvpolicy.discovery import registry
from kvpolicy.discovery.component import Unset
from kvpolicy.kinds import KINDS
from kvpolicy.named import resolved, title_by_class
from kvpolicy.stages.smoothing import MeanSmoother

WORKING = """
    import attrs, kvpolicy
    from attrs.validators import ge
    from kvpolicy.stages.smoothing import MeanSmoother

    @attrs.frozen(kw_only=True)
    class {title}(MeanSmoother):
        width: int = attrs.field(default=3, validator=ge(1))
        names: list = attrs.field(factory=list)
        path: str

    @kvpolicy.hookimpl
    def kvpolicy_smoothers():
        return {{"{name}": {title}}}
"""
SMOOTHER = WORKING.format(name="wide", title="WideSmoother")


@pytest.fixture
def wide(install_plugin):
    install_plugin("wide", SMOOTHER, version="2.5")
    return registry.find("smoother", "wide")


def test_a_plugin_is_found_through_its_entry_point(wide):
    assert str(wide) == "smoother 'wide' of plugin 'wide' (kvpolicy-wide 2.5)"


def test_options_are_listed_with_their_defaults(wide):
    assert wide.options == {"width": 3, "names": Unset.COMPUTED, "path": Unset.REQUIRED}


def test_a_part_is_built_with_its_options(wide):
    assert wide.build(path="here", width=5).width == 5


def test_components_are_listed_by_kind_and_name():
    kinds = [component.kind for component in installed()]
    assert kinds == sorted(kinds, key=list(KINDS).index)
    for kind in KINDS:
        names = [component.name for component in installed(kind)]
        assert names == sorted(names)
        assert names


def test_a_part_is_found_by_its_class(wide):
    assert registry.component_of("smoother", wide.build(path="here")).name == "wide"
    assert registry.component_of("scorer", wide.build(path="here")) is None
    assert registry.component_of("smoother", object()) is None


def test_the_title_of_a_part_names_its_plugin(wide):
    part = wide.build(path="here")
    expected = "smoother 'wide' of plugin 'wide' (kvpolicy-wide 2.5)"
    assert str(title_by_class("smoother", part)) == expected
    given = {"name": "wide", "path": "here"}
    assert str(resolved("smoother", given).title) == expected


def test_a_part_that_a_function_built_goes_by_the_name_it_was_asked_for_by(install_plugin):
    install_plugin(
        "made",
        """
        import kvpolicy
        from kvpolicy.stages.smoothing import MeanSmoother

        @kvpolicy.hookimpl
        def kvpolicy_smoothers():
            return {"made": lambda: MeanSmoother()}
        """,
    )
    assert resolved("smoother", "made").title.name == "made"
    assert resolved("smoother", resolved("smoother", "made").part).title.name == "mean"


def test_the_title_of_a_part_that_nobody_offers_is_its_class():
    assert str(title_by_class("smoother", 3.5)) == "smoother float"


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        ("selector", "topq", "no selector named 'topq'. Did you mean 'topk'? Installed: topk."),
        (
            "compactor",
            "topk",
            "no compactor named 'topk'. Installed: attentionmatching, cam, gather, grkv, lookm, "
            "momentkv, think. There is a selector of that name.",
        ),
        (
            "scorers",
            "restkv",
            "there is no kind of component called 'scorers'. Did you mean 'scorer'? Kinds: "
            "scorer, smoother, allocator, selector, compactor, storage, prefill_pattern, divider, "
            "recipe, task.",
        ),
    ],
)
def test_an_unknown_name_gets_the_names_there_are(kind, name, message):
    with pytest.raises(errors.UnknownComponentError) as caught:
        registry.find(kind, name)
    assert str(caught.value) == message


def test_an_unknown_option_gets_the_options_there_are(wide):
    with pytest.raises(errors.InvalidOptionError) as caught:
        wide.build(path="here", widht=5)
    assert str(caught.value) == (
        "smoother 'wide' has no option 'widht'. Did you mean 'width'? It has: width, names, path."
    )


def test_a_missing_option_is_asked_for(wide):
    with pytest.raises(errors.InvalidOptionError, match="'wide' needs the option 'path'"):
        wide.build()


@pytest.mark.parametrize(
    ("width", "message"),
    [
        (0, "smoother 'wide': 'width' must be >= 1: 0"),
        ("a", r"smoother 'wide': .* \(given path='here', width='a'\)"),
    ],
)
def test_a_refused_value_is_named(wide, width, message):
    with pytest.raises(errors.InvalidValueError, match=message):
        wide.build(path="here", width=width)


def test_the_arguments_of_a_validator_stay_out_of_the_message():
    component = _component(attrs.make_class("Part", {"size": attrs.field(validator=_is_int)}))
    with pytest.raises(errors.InvalidValueError) as caught:
        component.build(size="3")
    assert str(caught.value) == "smoother 'mine': 'size' must be <class 'int'>."


def test_a_part_that_lacks_a_verb_is_refused():
    component = _component(attrs.make_class("Half", [], bases=(_OnlyTemporal,)))
    with pytest.raises(errors.InvalidComponentError) as caught:
        component.build()
    assert str(caught.value) == (
        "smoother 'mine' of plugin 'me' (mine 1) built a Half, which lacks spatial of "
        "kvpolicy.stages.smoothing.Smoother."
    )


def test_a_factory_that_gives_a_class_is_refused():
    with pytest.raises(errors.InvalidComponentError, match="built the class MeanSmoother"):
        _component(lambda: MeanSmoother).build()


def test_a_factory_that_fails_is_named():
    def factory():
        raise OSError("no such file")

    with pytest.raises(errors.ComponentFailedError, match="could not be built: OSError: no such"):
        _component(factory).build()


def test_a_recipe_gives_the_arguments_of_compose_and_keeps_its_own():
    recipe = registry.find("recipe", "snapkv")
    arguments = recipe.build(budget=64)
    assert arguments["budget"] == 64
    arguments["scorer"] = "other"
    assert recipe.build()["scorer"] == "snapkv"
    with pytest.raises(errors.InvalidOptionError, match="Did you mean 'budget'"):
        recipe.build(buget=64)


BROKEN = {
    "an_import_error": ("import not_there_at_all", "ModuleNotFoundError: No module named"),
    "an_exit_at_import": ("raise SystemExit(3)", "SystemExit: 3"),
    "no_hook": ("answer = 42", "implements no hook"),
    "a_misspelt_hook": (
        "import kvpolicy\n@kvpolicy.hookimpl\ndef kvpolicy_scorer(): return {}",
        "there is no hook 'kvpolicy_scorer'. Did you mean 'kvpolicy_scorers'?",
    ),
    "a_hook_with_arguments": (
        "import kvpolicy\n@kvpolicy.hookimpl\ndef kvpolicy_scorers(model): return {}",
        "PluginValidationError",
    ),
    "a_hook_that_raises": (
        "import kvpolicy\n@kvpolicy.hookimpl\ndef kvpolicy_scorers(): raise KeyError('where')",
        "KeyError: 'where'",
    ),
    "a_list_of_parts": (
        "import kvpolicy\n@kvpolicy.hookimpl\ndef kvpolicy_scorers(): return ['mine']",
        "kvpolicy_scorers returned a list; it must return a mapping from names",
    ),
    "nothing": (
        "import kvpolicy\n@kvpolicy.hookimpl\ndef kvpolicy_scorers(): pass",
        "kvpolicy_scorers returned a NoneType",
    ),
    "a_number_for_a_name": (
        "import kvpolicy\n@kvpolicy.hookimpl\ndef kvpolicy_scorers(): return {3: dict}",
        "gives 3 as a name, but it is no string",
    ),
    "a_part_that_cannot_be_called": (
        "import kvpolicy\n@kvpolicy.hookimpl\ndef kvpolicy_scorers(): return {'mine': 3}",
        "scorer 'mine' is 3; it must be a class or a function",
    ),
    "options_by_position": (
        "import kvpolicy\ndef make(size, /): pass\n"
        "@kvpolicy.hookimpl\ndef kvpolicy_scorers(): return {'mine': make}",
        "scorer 'mine' must take its arguments by keyword, but takes size by position",
    ),
    "a_recipe_that_is_no_mapping": (
        "import kvpolicy\n@kvpolicy.hookimpl\ndef kvpolicy_recipes(): return {'mine': 'snapkv'}",
        "recipe 'mine' is 'snapkv'; it must be a mapping",
    ),
    "a_recipe_with_a_misspelt_argument": (
        "import kvpolicy\n@kvpolicy.hookimpl\n"
        "def kvpolicy_recipes(): return {'mine': {'scorer': 'snapkv', 'smother': 'mean'}}",
        "recipe 'mine' sets 'smother', which compose does not take. Did you mean 'smoother'?",
    ),
    "a_recipe_without_a_scorer": (
        "import kvpolicy\n@kvpolicy.hookimpl\n"
        "def kvpolicy_recipes(): return {'mine': {'smoother': 'mean'}}",
        "recipe 'mine' names no scorer",
    ),
}


@pytest.mark.parametrize(("source", "reason"), BROKEN.values(), ids=BROKEN)
def test_a_broken_plugin_warns_once_and_hides_no_other(install_plugin, source, reason):
    before = installed()
    install_plugin("faulty", source)

    with pytest.warns(errors.BrokenPluginWarning, match="skipped kvpolicy plugin 'faulty'"):
        assert installed() == before
    with warnings.catch_warnings(action="error"):
        [faulty] = registry.broken()

    assert reason in faulty.reason
    assert str(faulty).startswith("'faulty' (kvpolicy-faulty 1.0): ")


def test_an_interrupt_at_import_is_no_broken_plugin(install_plugin):
    install_plugin("faulty", "raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        installed()


def test_an_unknown_name_says_which_broken_plugin_may_offer_it(install_plugin):
    install_plugin("faulty", "import not_there_at_all")
    with pytest.warns(errors.BrokenPluginWarning), pytest.raises(LookupError) as caught:
        registry.find("scorer", "faulty")
    assert "'faulty' (kvpolicy-faulty 1.0): ModuleNotFoundError" in caught.value.__notes__[0]


def test_a_name_that_is_offered_twice_cannot_be_used_but_others_can(install_plugin):
    install_plugin("dup", WORKING.format(name="mean", title="OtherSmoother"), version="2.0")
    with pytest.raises(errors.DuplicateComponentError) as caught:
        registry.find("smoother", "mean")
    assert str(caught.value) == (
        "smoother 'mean' is offered twice: by 'core' (kvpolicy 0.1.0) and by 'dup' "
        "(kvpolicy-dup 2.0). Uninstall or rename one."
    )
    assert registry.find("selector", "topk").build()


def test_two_plugins_may_have_the_same_entry_point_name(install_plugin):
    install_plugin("wide", SMOOTHER)
    install_plugin("also", WORKING.format(name="also", title="AlsoSmoother"), plugin="wide")
    assert {"wide", "also"} <= {component.name for component in installed("smoother")}


def test_a_blocked_plugin_is_never_imported(install_plugin, monkeypatch):
    monkeypatch.setenv(registry.BLOCK, " restkv, faulty ,")
    install_plugin("faulty", "raise AssertionError('imported')")
    with pytest.raises(LookupError) as caught:
        registry.find("scorer", "restkv")
    assert caught.value.__notes__ == ["KVPOLICY_BLOCK_PLUGINS blocks these plugins: faulty, restkv"]


class _OnlyTemporal:
    def temporal(self, values):
        return values.mean(-2)


def _is_int(instance, attribute, value):
    raise TypeError(f"{attribute.name!r} must be <class 'int'>.", attribute, int, value)


def _component(offer):
    return registry.Component(
        kind="smoother", name="mine", plugin="me", distribution="mine", version="1", offer=offer
    )
