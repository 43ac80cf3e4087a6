"""Each variant of the needle task tells facts as it says, in texts of exactly the length asked."""

from random import Random

import pytest

from kvpolicy.errors import InvalidValueError
from kvpolicy.evaluation.needle.prompts import question, write_document
from kvpolicy.evaluation.needle.variants import VARIANTS, write
from kvpolicy.evaluation.needle.vocabulary import vocabulary


def sentences(words):
    return [tuple(each.split()) for each in " ".join(words).split(" .")]


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=lambda variant: variant.name)
def test_lengths_are_those_of_what_is_told(variant):
    text = variant.write(Random(0), tokens=200, facts=5)
    assert len(text.words) == 199
    assert set(text.words) <= set(vocabulary())
    assert len(text.facts) == 5
    for fact in text.facts:
        assert sum(map(len, fact.sentences)) == variant.fact_length
        assert len(fact.question) == variant.question_length
        assert len(fact.answer) == variant.answer_length
        assert all(each[:-1] in sentences(text.words) for each in fact.sentences)


def test_the_single_kind_writes_the_documents_of_the_model_that_ships():
    mine = VARIANTS["single"].write(Random(3), tokens=256, facts=20)
    shipped = write_document(Random(3), tokens=256, facts=20)
    assert mine.words == shipped.words
    assert [(fact.question, fact.answer) for fact in mine.facts] == [
        (question(fact.name), fact.code) for fact in shipped.facts
    ]


def test_a_redundant_fact_is_told_three_times_in_different_words():
    fact = VARIANTS["redundant"].write(Random(0), tokens=128, facts=2).facts[0]
    assert len(set(fact.sentences)) == 3
    assert {each[1:] for each in fact.sentences} == {(*fact.question[1:], *fact.answer, ".")}


def test_a_chained_answer_takes_both_sentences():
    link, code = VARIANTS["chained"].write(Random(0), tokens=128, facts=2).facts[0].sentences
    fact = VARIANTS["chained"].write(Random(0), tokens=128, facts=2).facts[0]
    assert fact.question[1:] == link[:2]
    assert fact.answer == code[1:-1]
    assert link[2] == code[1] == fact.answer[0]


def test_each_name_is_told_of_once():
    text = VARIANTS["chained"].write(Random(0), tokens=512, facts=40)
    names = [fact.sentences[0][1:3] for fact in text.facts]
    assert len({name for pair in names for name in pair}) == 80


@pytest.mark.parametrize("variant", VARIANTS)
def test_equal_seeds_write_equal_prompts(variant):
    given = {"tokens": 256, "facts": 8, "count": 3}
    asked = write(variant, **given, seed=1)
    assert asked == write(variant, **given, seed=1)
    assert asked != write(variant, **given, seed=2)
    assert {len(each.text.split()) for each in asked} == {255}


@pytest.mark.parametrize(("tokens", "facts"), [(20, 2), (20, 0), (2000, 65), (38, 2)])
def test_facts_that_do_not_fit_are_refused(tokens, facts):
    variant = VARIANTS["chained"] if facts == 65 else VARIANTS["redundant"]
    with pytest.raises(
        InvalidValueError, match=f"{facts} facts of variant '{variant.name}' do not go"
    ):
        variant.write(Random(0), tokens=tokens, facts=facts)
