"""A folder with everything that RULER's tasks read, made up and small."""

from __future__ import annotations

import json

import pytest

from kvpolicy.testing import byte_tokenizer


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ruler")
    for name, kind, number in (("noun", "n", 3000), ("adjective", "a", 1200), ("verb", "v", 400)):
        words = "\n".join(f"{kind}{place:x}" for place in range(number))
        (folder / f"{name}list.txt").write_text(words + "\n")
    essay = " ".join(f"Line {place} says {place * place % 97}!" for place in range(400))
    (folder / "PaulGrahamEssays.json").write_text(json.dumps({"text": essay}))
    (folder / "squad.json").write_text(json.dumps({"data": [_article(one) for one in range(8)]}))
    hotpot = [_hotpot(one) for one in range(5)]
    (folder / "hotpotqa.json").write_text(json.dumps(hotpot))
    return folder


def _article(one):
    paragraphs = []
    for place in range(3):
        text = f"Town {one}-{place} has {one * 100 + place} people."
        asked = {
            "question": f"How many live in {one}-{place}?",
            "is_impossible": place == 1,
            "answers": [{"text": str(one * 100 + place)}, {"text": f"{one * 100 + place} people"}],
        }
        paragraphs.append({"context": text, "qas": [asked]})
    return {"paragraphs": paragraphs}


def _hotpot(one):
    context = [[f"Title {one}-{place}", [f"It is {place}.", " And red."]] for place in range(10)]
    return {"question": f"What is {one}?", "answer": "red", "context": context}


@pytest.fixture(scope="session")
def tokenizer():
    return byte_tokenizer()
