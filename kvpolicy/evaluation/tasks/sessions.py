"""Dialogues that every Python has: the interpreter sessions in docstrings of its library."""

from __future__ import annotations

import ast
import doctest
import sysconfig
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import attrs

from kvpolicy.errors import InvalidValueError
from kvpolicy.evaluation.measures.catalogue import METRICS
from kvpolicy.options import count, natural
from kvpolicy.task import Metric, Sample

REQUEST = "I type Python, and you answer what the interpreter prints.\n"


@attrs.frozen(kw_only=True)
class SessionsTask:
    """Dialogues between a user who types Python and an agent who says what it prints.

    Each is the beginning of the examples in the docstrings of one module, as `doctest` finds them,
    in whole turns of at most `length` tokens together. `seed` draws the modules. Other versions of
    Python have other texts.
    """

    length: int = attrs.field(default=192, validator=count)
    num_samples: int = attrs.field(default=8, validator=count)
    seed: int = attrs.field(default=0, validator=natural)

    @property
    def metric(self) -> Metric:
        """The perplexity of what the interpreter prints."""
        return METRICS["dialogue_perplexity"]

    def samples(self, tokenizer: Any) -> Iterator[Sample]:
        """Yield the dialogues, under the names of their modules.

        Raises InvalidValueError if too few modules have sessions that are long enough.
        """
        found = [
            Sample(name=name, messages=tuple(messages), chat=False)
            for name, turns in _sessions().items()
            if (messages := self._fitted(turns, tokenizer))
        ]
        if len(found) < self.num_samples:
            raise InvalidValueError(
                f"{len(found)} modules of the standard library have sessions of {self.length} "
                f"tokens, fewer than num_samples {self.num_samples}. Give fewer samples or a "
                "smaller length."
            )
        Random(self.seed).shuffle(found)
        yield from found[: self.num_samples]

    def _fitted(self, turns: list[tuple[str, str]], tokenizer: Any) -> list[Mapping[str, str]]:
        """Return the messages of the turns that fit; none for a session that is not long enough."""
        messages: list[Mapping[str, str]] = []
        room, before = self.length, REQUEST
        for typed, printed in turns:
            typed, before = before + typed, ""
            ids = tokenizer(f"{typed}\n{printed}\n", add_special_tokens=False)["input_ids"]
            room -= len(ids)
            if room < 0:
                return messages
            messages += [
                {"role": "user", "content": typed},
                {"role": "assistant", "content": printed},
            ]
        return []


@cache
def _sessions() -> Mapping[str, list[tuple[str, str]]]:
    """Return, by the name of a module, what is typed and printed in its docstrings, in order."""
    found = {}
    for file in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        turns: list[tuple[str, str]] = []
        typed = ""
        for example in _examples(file.read_text(encoding="utf-8")):
            typed += example.source
            if example.want.strip():
                turns.append((typed.strip(), example.want.strip()))
                typed = ""
        found[file.name] = turns
    return found


def _examples(source: str) -> Iterator[doctest.Example]:
    if ">>>" not in source:
        return
    parser = doctest.DocTestParser()
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, documented) and (text := ast.get_docstring(node)):
            yield from parser.get_examples(text)
