"""What is said about a comparison follows from its figures."""

from __future__ import annotations

import attrs

from kvpolicy.evaluation.demo.wording import HEADINGS, conclusion, footnotes, next_step, table
from kvpolicy.evaluation.reports.comparison import Refusal


def test_the_best_recipe_of_the_smallest_budget_is_named(made_up):
    comparison = made_up(20, a={10: 4, 50: 20}, b={10: 9, 50: 12})
    assert conclusion(comparison) == (
        "With 10 of 200 positions (5 %), b gets 9 of 20 answers right, the most, before a with 4; "
        "the full cache gets 20 of 20 right, and a comes within its 95 % interval at 50."
    )
    assert "--recipe b " in next_step(comparison)


def test_a_tie_is_called_one(made_up):
    said = conclusion(made_up(19, a={10: 4}, b={10: 4}))
    assert "a and b each get 4 of 20 answers right; " in said
    assert said.endswith("and no recipe comes within its 95 % interval.")


def test_those_who_tie_for_the_second_place_are_all_named(made_up):
    said = conclusion(made_up(20, a={10: 4}, b={10: 9}, c={10: 4}, d={10: 1}))
    assert "b gets 9 of 20 answers right, the most, before a and c with 4 each; " in said


def test_the_next_step_says_who_does_as_well(made_up):
    tied = made_up(20, a={10: 4, 20: 9}, b={10: 4, 20: 9}, c={10: 4, 20: 8})
    assert "--recipe a --budget" in next_step(tied)
    assert next_step(tied).endswith("(b: as good here)")


def test_of_those_who_tie_at_the_smallest_budget_the_best_in_all_is_next(made_up):
    step = next_step(made_up(20, a={10: 4, 20: 8}, b={10: 4, 20: 9}))
    assert "--recipe b " in step
    assert "as good" not in step


def test_prompts_that_are_too_hard_lead_to_no_verdict(made_up):
    said = conclusion(made_up(3, a={10: 3}))
    assert said.endswith("so these prompts are too hard for the model to tell recipes apart.")


def test_the_table_has_the_refused_in_their_places(made_up):
    refusal = Refusal(name="a", budget=5, reason="too small.")
    comparison = attrs.evolve(made_up(20, a={10: 4}, b={10: 9}), refusals=(refusal,))
    rows = table(comparison)
    assert [row[:3] for row in rows] == [
        ("full cache", "", "20 of 20"),
        ("a", "5", "refused"),
        ("a", "10", "4 of 20"),
        ("b", "10", "9 of 20"),
    ]
    assert {len(row) for row in rows} == {len(HEADINGS)}


def test_what_recipes_always_keep_is_a_footnote(comparison, made_up):
    said = "Positions that are kept whatever their score. restkv: 32; streamingllm: 5."
    assert said in footnotes(comparison)
    assert not any("whatever their score" in note for note in footnotes(made_up(20, a={10: 4})))


def test_what_is_kept_at_each_budget_is_that_of_each_budget(made_up):
    comparison = made_up(20, a={40: 4, 64: 5}, b={40: 9, 64: 9}, c={40: 1, 64: 2}, d={64: 1})
    kept = {"a": {40: 20, 64: 32}, "b": {40: 32, 64: 32}, "c": {40: 20, 64: 32}, "d": {64: 7}}
    standings = tuple(
        attrs.evolve(each, protected=kept[each.name][each.budget]) for each in comparison.standings
    )
    said = (
        "Positions that are kept whatever their score. "
        "a and c: 20 at budget 40, 32 at 64; b: 32; d: 7."
    )
    assert said in footnotes(attrs.evolve(comparison, standings=standings))


def test_recipes_that_refuse_for_one_reason_share_a_footnote(made_up):
    refusals = tuple(Refusal(name=name, budget=5, reason="too small.") for name in "ab")
    comparison = attrs.evolve(made_up(20, c={10: 4}), refusals=refusals)
    assert footnotes(comparison)[0] == "refused by a and b at 5: too small."
