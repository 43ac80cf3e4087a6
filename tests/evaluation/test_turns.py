"""Facts of the first turn, after later turns."""

from random import Random

from kvpolicy import recipe
from kvpolicy.evaluation import turns
from kvpolicy.evaluation.needle import load
from kvpolicy.evaluation.needle.prompts import write_document


def test_turns_are_the_text_and_hold_their_facts():
    document = write_document(
        Random(0), tokens=turns.TURNS * turns.TOKENS, facts=turns.TURNS * turns.FACTS
    )
    parts = turns.turns_of(document)
    assert [word for words, _ in parts for word in words] == ["<s>", *document.words]
    for words, facts in parts:
        assert all(fact.name in words for fact in facts)
    assert len({fact.name for _, facts in parts for fact in facts}) == turns.TURNS * turns.FACTS


def test_a_budget_for_each_turn_keeps_facts_that_one_for_all_turns_forgets(monkeypatch):
    monkeypatch.setattr(turns, "TURNS", 3)
    model, tokenizer = load()
    apart, together = (
        turns.retention(model, tokenizer, recipe("restkv", budget=64, per_turn=per_turn))
        for per_turn in (True, False)
    )
    assert apart[0] == together[0]
    assert apart[2] > together[2] + 0.2
