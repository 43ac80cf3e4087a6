"""Each rule tells texts that follow it from those that do not, and rules go together."""

from __future__ import annotations

from random import Random

import pytest

from kvpolicy.evaluation.tasks.instructions.rules import (
    COMMON_WORDS,
    LAST_SENTENCES,
    MOST,
    RULES,
    draw_rules,
    follows,
    sentence_of,
    words_of,
)

CASES = {
    "lower_case": ({}, "a red door.", "A red door."),
    "upper_case": ({}, "A RED DOOR, 9.", "A red DOOR."),
    "no_comma": ({}, "Red and blue.", "Red, blue."),
    "keyword": ({"word": "amber"}, "It is Amber.", "It is ambers."),
    "forbidden": ({"word": "and"}, "A sandy hand.", "Red And blue."),
    "first_word": ({"word": "Listen"}, '"Listen," he said.', "He said listen."),
    "last_sentence": ({"text": "That is all."}, "Red.\nTHAT IS ALL.\n", "That is all. Red."),
    "postscript": ({}, "Red.\n p.s. Blue.", "P.S. Blue.\nRed."),
    "title": ({}, "<<Red>>\nBlue.", "<< \n>> <Red>"),
    "placeholders": ({"number": 2}, "[name] and [place]", "[name] and [ \n ]"),
    "most_words": ({"number": 3}, "one two three", "one two three four"),
    "lines": ({"number": 2}, "* one\n  * two\nthree", "* one\n* two\n* three"),
}


@pytest.mark.parametrize("kind", RULES)
def test_a_rule_tells_a_text_that_follows_it_from_one_that_does_not(kind):
    options, right, wrong = CASES[kind]
    rule = {"kind": kind, **options}
    assert follows(right, rule)
    assert not follows(wrong, rule)
    assert not follows(" \n", rule)
    assert all(str(option) in sentence_of(rule) for option in options.values())


def text_for(rules):
    """Write a text that follows all rules."""
    own = {rule["kind"]: rule for rule in rules}
    lines = [own["first_word"]["word"]] if "first_word" in own else []
    lines += ["<<red>>"] if "title" in own else []
    lines += [own["keyword"]["word"]] if "keyword" in own else ["red"]
    lines += ["[name]"] * own.get("placeholders", {}).get("number", 0)
    lines += ["* red"] * own.get("lines", {}).get("number", 0)
    lines += ["P.S. red"] if "postscript" in own else []
    lines += [own["last_sentence"]["text"]] if "last_sentence" in own else []
    text = "\n".join(lines)
    return text.upper() if "upper_case" in own else text.lower() if "lower_case" in own else text


def test_rules_of_one_prompt_can_all_be_followed():
    rng, seen = Random(0), set()
    for _ in range(200):
        rules = draw_rules(rng, MOST)
        assert len(rules) == len({RULES[rule["kind"]].place for rule in rules}) == MOST
        assert [rule for rule in rules if not follows(text_for(rules), rule)] == []
        seen |= {rule["kind"] for rule in rules}
    assert seen == set(RULES)


def test_no_word_is_forbidden_that_another_rule_asks_for():
    assert not set(COMMON_WORDS) & {word for text in LAST_SENTENCES for word in words_of(text)}


def test_rules_stand_in_every_order():
    rng = Random(0)
    firsts = {draw_rules(rng, 3)[0]["kind"] for _ in range(200)}
    assert len(firsts) > 9
