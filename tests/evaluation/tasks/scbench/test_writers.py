"""Each context holds what is asked about it, once, and as much else as is wanted."""

from __future__ import annotations

import json
import re
from random import Random

import pytest

from kvpolicy.evaluation.tasks.scbench.writers import HOPS, NOISE, WRITERS


def written(kind, units=40, questions=5):
    return WRITERS[kind][0](Random(7), units, questions)


@pytest.mark.parametrize("kind", WRITERS)
def test_questions_are_different_and_have_answers_in_the_context(kind):
    session = written(kind)
    assert len({query.question for query in session.queries}) == 5
    assert all(answer in session.context for each in session.queries for answer in each.answers)


@pytest.mark.parametrize("kind", WRITERS)
def test_more_units_are_a_longer_context(kind):
    lengths = [len(written(kind, units).context) for units in (20, 40, 80)]
    assert lengths == sorted(set(lengths))


def test_a_json_object_has_so_many_pairs_and_answers_for_its_keys():
    session = written("kv")
    pairs = json.loads(session.context[session.context.index("{") :])
    assert len(pairs) == 40
    for query in session.queries:
        key = re.search(r'Key: "(.*)"', query.question)[1]
        assert query.answers == (pairs[key],)


@pytest.mark.parametrize("units", [1, 40, 200])
def test_one_string_has_both_ends_and_others_have_one_of_them(units):
    session = written("prefix_suffix", units)
    strings = session.context.split("\n")[2:]
    assert len(strings) == max(units, 15)
    for query in session.queries:
        first, last = re.search(r'begins with "(.*)" and ends with "(.*)"', query.question).groups()
        begins = {each for each in strings if each.startswith(first)}
        ends = {each for each in strings if each.endswith(last)}
        assert begins & ends == set(query.answers)
        assert len(begins) > 1 < len(ends)


def test_a_chain_leads_from_its_value_to_all_its_variables():
    session = written("vt")
    lines = session.context.split("\n\n")[1].split("\n")
    assert lines.count(NOISE) == 40
    assert len(lines) == 40 + 5 * (HOPS + 1)
    for query in session.queries:
        known = {re.search(r"value (\d+)", query.question)[1]}
        value = set(known)
        for line in lines:
            if assigned := re.fullmatch(r"VAR (\w+) = (?:VAR )?(\w+)", line):
                known |= {assigned[1]} if assigned[2] in known else set()
        assert known - value == set(query.answers)
        assert len(query.answers) == HOPS + 1


def test_a_fact_is_told_once_and_its_person_has_others():
    session = written("many_facts")
    facts = dict(re.findall(r"The code of (.*) is (.*)\.", session.context))
    assert len(facts) == 40
    assert len({name.partition("'s")[0] for name in facts}) < 40
    for query in session.queries:
        name = re.search(r"code of (.*)\?", query.question)[1]
        assert query.answers == (facts[name],)
