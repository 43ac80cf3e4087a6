"""What RULER's texts are made of: lists of words, and essays."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

from kvpolicy.errors import DataError, MissingPackageError, shown
from kvpolicy.evaluation.tasks.files import json_of, text_of

NOUNS, ADJECTIVES, VERBS = WORDS = ("nounlist.txt", "adjectivelist.txt", "verblist.txt")
ESSAYS = "PaulGrahamEssays.json"
_ESSAYS = (
    "RULER's download_paulgraham_essay.py makes it (about 3 MB). A folder of .txt files will do "
    "too, such as PaulGrahamEssays of gkamradt/LLMTest_NeedleInAHaystack (49 files, 644 kB)."
)
_END = re.compile(r"(?<=[.!?])\s+")


def words_of(folder: str | None, *names: str) -> list[str]:
    """Return the lines of lists of words, in order, of a folder or else of package wonderwords.

    Raises MissingPackageError if there is neither, DataError if a list cannot be read.
    """
    origin = "It holds a word a line; the package wonderwords has one of that name (under 60 kB)."
    own = folder is not None and (Path(folder) / names[0]).exists()
    where = Path(folder) if own and folder is not None else _package()
    return [
        word.strip()
        for name in names
        for word in text_of(where / name, origin).split("\n")
        if word.strip()
    ]


class Pairs(Sequence[str]):
    """All words `adjective-noun`, each once, in alphabetical order, without writing them down.

    >>> list(Pairs(["red", "big"], ["cat", "ant"]))
    ['big-ant', 'big-cat', 'red-ant', 'red-cat']
    """

    def __init__(self, adjectives: Iterable[str], nouns: Iterable[str]) -> None:
        self.starts = sorted({f"{adjective}-" for adjective in adjectives})
        self.nouns = sorted(set(nouns))
        self.mixed: list[str] | None = None
        if any(later.startswith(first) for first, later in pairwise(self.starts)):
            # Words of "up" then stand among those of "up-front".
            self.mixed = sorted({start + noun for start in self.starts for noun in self.nouns})

    def __len__(self) -> int:
        if self.mixed is not None:
            return len(self.mixed)
        return len(self.starts) * len(self.nouns)

    def __getitem__(self, place: Any) -> Any:
        if self.mixed is not None:
            return self.mixed[place]
        if not 0 <= place < len(self):
            raise IndexError(place)
        start, noun = divmod(place, len(self.nouns))
        return self.starts[start] + self.nouns[noun]


def essays_of(folder: str | None) -> str:
    """Return the text of PaulGrahamEssays.json of a folder, or of its .txt files, sorted by name.

    Lists of words are no essays. Raises DataError if there are none.
    """
    if folder is None:
        raise DataError(
            f"this task hides needles in essays. Give a folder that holds {ESSAYS} as option "
            f"folder=... {_ESSAYS}"
        )
    file = Path(folder) / ESSAYS
    files = [each for each in sorted(file.parent.glob("*.txt")) if each.name not in WORDS]
    if not file.exists() and files:
        return "".join(text_of(each, _ESSAYS) for each in files)
    data = json_of(file, _ESSAYS)
    if not (isinstance(data, dict) and isinstance(data.get("text"), str)):
        raise DataError(f'{shown(str(file))} is no file of essays: it must be {{"text": "..."}}.')
    text: str = data["text"]
    return text


def words_in(text: str) -> list[str]:
    """Return the words of an essay, as RULER counts them."""
    return re.sub(r"\s+", " ", text).split(" ")


def sentences_in(text: str) -> list[str]:
    """Return the sentences of a text.

    >>> sentences_in("One is here. Is two? Yes!")
    ['One is here.', 'Is two?', 'Yes!']
    """
    return _END.split(text.strip())


def _package() -> Path:
    found = find_spec("wonderwords")
    if found is None or found.origin is None:
        raise MissingPackageError(
            "this task takes its words from the package wonderwords, which is not installed. "
            "Install kvpolicy[eval], or give a folder with "
            f"{NOUNS}, {ADJECTIVES} and {VERBS} as option folder=..."
        )
    return Path(found.origin).with_name("assets")
