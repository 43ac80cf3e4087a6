"""A policy is shown as the Python expression that builds it."""

import attrs
import pytest

import kvpolicy
from kvpolicy.stages.smoothing import MeanSmoother

RECIPES = [each.name for each in kvpolicy.installed("recipe")]


@pytest.mark.parametrize("name", RECIPES)
def test_the_expression_builds_the_policy_again(name):
    named = kvpolicy.recipe(name, budget=0.5)
    assert eval(repr(named)) == named
    composed = kvpolicy.compose(**kvpolicy.installed("recipe")[RECIPES.index(name)].build())
    assert repr(composed).startswith("kvpolicy.compose(scorer=")
    assert eval(repr(composed)) == composed


@pytest.mark.parametrize(
    ("policy", "expression"),
    [
        (kvpolicy.recipe("restkv"), "kvpolicy.recipe('restkv', budget=1024)"),
        (
            kvpolicy.recipe("snapkv", scorer={"window": 8}, budget=64),
            "kvpolicy.recipe('snapkv', scorer={'window': 8}, budget=64)",
        ),
        (
            attrs.evolve(kvpolicy.recipe("h2o", budget=64), every=None),
            "kvpolicy.recipe('h2o', budget=64, every=None)",
        ),
        (
            kvpolicy.recipe("snapkv", smoother="mean", budget=64, group="max"),
            "kvpolicy.recipe('snapkv', smoother='mean', budget=64, group='max')",
        ),
        (
            kvpolicy.compose(scorer="snapkv", smoother=MeanSmoother(), recent=1, budget=64),
            "kvpolicy.compose(scorer='snapkv', budget=64, recent=1)",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_only_what_differs_is_shown(policy, expression):
    assert repr(policy) == expression
    assert eval(expression) == policy


def test_a_part_of_no_plugin_is_shown_as_it_is():
    @attrs.frozen
    class Own(MeanSmoother):
        pass

    shown = repr(kvpolicy.compose(scorer="snapkv", smoother=Own(), budget=64))
    assert shown == f"kvpolicy.compose(scorer='snapkv', smoother={Own()!r}, budget=64)"


def test_a_recipe_whose_plugin_is_gone_is_shown_by_its_parts():
    policy = attrs.evolve(kvpolicy.recipe("snapkv", budget=64), recipe="gone")
    assert repr(policy) == "kvpolicy.compose(scorer='snapkv', smoother='pooling', budget=64)"


def test_a_notebook_shows_a_table_of_parts_and_settings():
    shown = kvpolicy.recipe("snapkv", budget=64)._repr_html_()
    for cell in ("snapkv", "AttentionScorer(window=32)", "budget", "64"):
        assert f">{cell}<" in shown
