"""One prompt is shown word by word, with what each policy kept of it and answered."""

from __future__ import annotations


def test_the_answer_is_where_the_words_say(specimen, questions):
    asked = [specimen.words[place] for place in specimen.asked]
    assert asked == questions[0].answer.split()
    assert all(specimen.words[fact.start] == "password" for fact in specimen.facts)
    assert len(specimen.facts) == 4


def test_everyone_with_a_row_at_the_budget_is_shown(specimen, comparison):
    assert specimen.budget == comparison.telling_budget
    at_work = {each.name for each in comparison.at(specimen.budget)}
    assert [each.name for each in specimen.survivals] == ["full cache", *sorted(at_work)]


def test_shares_add_up_to_the_budget(specimen):
    full, *others = specimen.survivals
    assert set(full.shares) == {1.0}
    assert all(abs(sum(each.shares) - specimen.budget) < 1e-3 for each in others)


def test_the_full_cache_answers_the_first_prompt_right(specimen, questions):
    full = specimen.survivals[0]
    assert (full.answer, full.right) == (questions[0].answer, True)
