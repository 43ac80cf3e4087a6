"""The contract of a plugin has one test for each promise, or says why there is none."""

import pytest

import kvpolicy
from kvpolicy import errors, testing
from kvpolicy.testing.promises import PROMISES


def test_the_contract_has_one_case_for_each_promise():
    [mark] = kvpolicy.testing.contract(plugin="snapkv").pytestmark
    ids = [case.id for case in mark.args[1]]
    assert "scorer-snapkv-scores_every_position" in ids
    assert len(ids) == len(set(ids))
    assert sum(each.startswith("recipe-snapkv-") for each in ids) == len(PROMISES["recipe"])


def test_a_contract_for_no_plugin_is_refused():
    with pytest.raises(errors.UnknownComponentError, match=r"'snapvk' is .* mean 'snapkv'"):
        testing.contract(plugin="snapvk")


def test_a_contract_for_a_broken_plugin_says_why(install_plugin):
    install_plugin("faulty", "import not_there_at_all")
    with (
        pytest.warns(errors.BrokenPluginWarning),
        pytest.raises(errors.InvalidComponentError, match="not_there_at_all"),
    ):
        testing.contract(plugin="faulty")


def test_a_contract_builds_parts_with_the_options_that_it_is_given(install_plugin):
    install_plugin(
        "needy",
        """
        import attrs, kvpolicy
        from kvpolicy.stages.selection import TopKSelector

        @attrs.frozen(kw_only=True)
        class NeedySelector(TopKSelector):
            path: str

        @kvpolicy.hookimpl
        def kvpolicy_selectors():
            return {"needy": NeedySelector}
        """,
    )
    test = testing.contract(plugin="needy", options={"needy": {"path": "here"}})
    component, promise = test.pytestmark[0].args[1][0].values
    test(component, promise)
    with pytest.raises(errors.InvalidOptionError, match="needs the option 'path'"):
        testing.contract(plugin="needy")(component, promise)
